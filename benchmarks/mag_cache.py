"""MagCache beside the step cache, at the same share of passes left out: what each costs in quality.

    python -m benchmarks.mag_cache [--prompts 20] [--first 8] [--calibration 2] [--k 4] [--modes fast faster balanced]
                                   [--steps 20] [--size 192]

MagCache (Ma et al., arXiv:2506.09045; Diffusers' hooks) leaves a pass out by a curve: the mean ratio of the length of
each token's residual, behind all blocks, to that of the step before. As long as what the curve adds up to stays below a
threshold, and for at most K steps, the last residual is added instead. The curve of each expert, with and without the
prompt, is the mean over `--calibration` clips of other prompts than those that are measured.

Both caches compute the first and last tenth of the steps and the first step of each expert. The threshold of MagCache
is the least with which it leaves out as many passes as the step cache did on the same prompts, or more. Held-out
scenes on the trained demo model, judged as `benchmarks.quality` does.

K is 4, fixed before the measurement: it was chosen on scenes 0 to 7, which `--first 8` leaves out. What decides is the
mean over the prompts of MagCache's figure less that of the step cache for the same prompt (`gain`), beside its standard
error. Writes `mag-cache-DATE.json` beside the others, with the hashes of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import MagCacheConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.mag_cache import _MAG_CACHE_LEADER_BLOCK_HOOK

from benchmarks import reporting
from benchmarks.quality import figures, psnr_db
from benchmarks.quality_cases import Case, Clip, Studio, asked_scenes
from benchmarks.reporting import RESULTS
from benchmarks.step_cache import ssim
from worker.engine.techniques import step_cache
from worker.engine.techniques.base import Run
from worker.weights.sources import demo_trained

# What a forward pass is of: the number of its expert, and 0 with the prompt, 1 without.
Kind = tuple[int, int]
# Whether each step is left out; a step belongs to one expert.
Schedule = dict[Kind, dict[int, bool]]
# Of the step cache: those of the service, and one that leaves out more.
THRESHOLDS = {**step_cache.THRESHOLDS, "faster": 0.2}
_UNLIMITED = 10**6
_Put = Callable[[WanTransformer3DModel, Any, Run, Any], Any]


@dataclass
class Passes:
    """All passes of the clips of a case, and how many were left out; whose turn it is in the current step."""

    all: int = 0
    left_out: int = 0
    _step: int = -1
    _number: int = 0

    def next(self, expert: WanTransformer3DModel, run: Run) -> Kind:
        self._number = self._number + 1 if run.steps_done == self._step else 0
        self._step = run.steps_done
        return next(number for number, each in enumerate(run.experts) if each is expert), self._number

    @property
    def share(self) -> float:
        return self.left_out / max(self.all, 1)


@dataclass
class Curves:
    """Of each kind and step the ratios that the calibration found, one for each clip."""

    ratios: dict[Kind, dict[int, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def put(self) -> _Put:
        """In the place of the step cache: leaves nothing out, and notes the ratios."""
        passes = Passes()
        lengths: dict[Kind, torch.Tensor] = {}

        @contextmanager
        def measuring(expert: WanTransformer3DModel, _rule: Any, run: Run, _passes: Any) -> Iterator[None]:
            given: list[torch.Tensor] = []

            def first(_: object, arguments: tuple[torch.Tensor, ...]) -> None:
                given[:] = [arguments[0]]

            def last(_: object, __: object, output: torch.Tensor) -> None:
                kind = passes.next(expert, run)
                length = (output - given[0]).float().norm(dim=-1)
                if kind in lengths and run.steps_done > 0:
                    self.ratios[kind][run.steps_done].append(float((length / lengths[kind]).mean()))
                lengths[kind] = length

            hooks = (
                expert.blocks[0].register_forward_pre_hook(first),
                expert.blocks[-1].register_forward_hook(last),
            )
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()
                lengths.clear()

        return measuring

    def schedule(self, threshold: float, longest: int, steps: int) -> Schedule:
        found: Schedule = {}
        for kind, curve in self.ratios.items():
            found[kind] = {}
            ratio, error, row = 1.0, 0.0, 0
            for step in sorted(curve):
                ratio *= statistics.fmean(curve[step])
                error, row = error + abs(1 - ratio), row + 1
                skip = error <= threshold and row <= longest and not step_cache.in_full(step, steps)
                if not skip:
                    ratio, error, row = 1.0, 0.0, 0
                found[kind][step] = skip
        return found

    def least_schedule(self, share: float, longest: int, steps: int) -> tuple[float, Schedule]:
        """The least threshold with which at least `share` of all passes are left out, or the largest there is."""
        for threshold in (10 ** (exponent / 50) for exponent in range(-200, 101)):
            found = self.schedule(threshold, longest, steps)
            if sum(skip for steps_of in found.values() for skip in steps_of.values()) >= share * 2 * steps:
                break
        return threshold, found


def by_schedule(schedule: Schedule, passes: Passes) -> _Put:
    """In the place of the step cache: MagCache, which leaves out what `schedule` says."""

    @contextmanager
    def cached(expert: WanTransformer3DModel, _rule: Any, run: Run, _passes: Any) -> Iterator[None]:
        config = MagCacheConfig(
            threshold=0.0,
            max_skip_steps=_UNLIMITED,
            retention_ratio=0.0,
            num_inference_steps=1000,
            mag_ratios=[1.0] * 1000,
        )
        expert.enable_cache(config)
        leader: Any = HookRegistry.check_if_exists_or_initialize(expert.blocks[0]).get_hook(
            _MAG_CACHE_LEADER_BLOCK_HOOK
        )

        def before(*_: object) -> None:
            kind = passes.next(expert, run)
            skip = schedule.get(kind, {}).get(run.steps_done, False)
            leader.config.threshold = math.inf if skip else -1.0

        def after(*_: object) -> None:
            passes.all += 1
            passes.left_out += not leader.state_manager.get_state().should_compute

        hooks = expert.register_forward_pre_hook(before), expert.register_forward_hook(after)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            expert.disable_cache()

    return cached


def counted(put: _Put, threshold: float, passes: Passes) -> _Put:
    """The step cache with `threshold`; its passes are counted in `passes` too."""

    @contextmanager
    def cached(expert: WanTransformer3DModel, _rule: Any, run: Run, own: Any) -> Iterator[None]:
        before = own.all, own.cached
        with put(expert, step_cache.FirstBlock(threshold), run, own):
            yield
        if expert is run.experts[0]:  # left last, when all passes of the clip are counted
            passes.all += own.all - before[0]
            passes.left_out += own.cached - before[1]

    return cached


def clips_of(studio: Studio, name: str, put: _Put, scenes: Sequence[Any], options: Any) -> list[Clip]:
    with mock.patch.object(step_cache, "_cached", put):
        return studio.clips(Case(name, {"step_cache": "fast"}), scenes, options.steps)


def row(clips: Sequence[Clip], exact: Sequence[Clip], passes: Passes, **more: Any) -> dict[str, Any]:
    pairs = [(clip.frames, other.frames) for clip, other in zip(clips, exact, strict=True)]
    each = {
        "each_db": [round(psnr_db(*pair), 2) for pair in pairs],
        "each_ssim": [round(ssim(*pair), 5) for pair in pairs],
    }
    likeness = statistics.fmean(each["each_ssim"])
    return {**figures(clips, exact), "exact_ssim": likeness, "left_out": passes.share, **more, **each}


def gain(of: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """By how much each clip of a row is nearer to the exact one than the same clip of another row."""
    found: dict[str, Any] = {}
    for unit in ("db", "ssim"):
        each = [mine - other for mine, other in zip(of[f"each_{unit}"], over[f"each_{unit}"], strict=True)]
        found[unit] = statistics.fmean(each)
        found[f"{unit}_standard_error"] = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
        found[f"{unit}_nearer"] = sum(difference > 0 for difference in each)
    return found


def measure(studio: Studio, options: argparse.Namespace) -> Iterator[tuple[Curves, dict[str, dict[str, Any]]]]:
    """The curves, and the rows so far, after each mode."""
    scenes = asked_scenes(options.first + options.prompts + options.calibration)[options.first :]
    asked, others = scenes[: options.prompts], scenes[options.prompts :]
    curves = Curves()
    table: dict[str, dict[str, Any]] = {}

    def add(name: str, found: dict[str, Any]) -> dict[str, Any]:
        table[name] = found
        print(name, "  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        return found

    clips_of(studio, "calibration", curves.put(), others, options)
    exact = studio.clips(Case("exact"), asked, options.steps)
    for mode in options.modes:
        threshold, passes, done = THRESHOLDS[mode], Passes(), list[Schedule]()
        made = clips_of(studio, mode, counted(step_cache._cached, threshold, passes), asked, options)
        plain = add(f"step cache {mode}", row(made, exact, passes, threshold=threshold))
        for longest in options.k:
            same = Passes()
            found, schedule = curves.least_schedule(passes.share, longest, options.steps)
            if schedule not in done:
                done.append(schedule)
                made = clips_of(studio, mode, by_schedule(schedule, same), asked, options)
                mine = row(made, exact, same, threshold=found)
                add(f"MagCache as {mode}, K {longest}", {**mine, "gain": gain(mine, plain)})
        yield curves, table


def hashes() -> dict[str, str]:
    """The first 16 hexadecimal digits of the SHA-256 of each weight file that the demo model was made of."""
    files = sorted(demo_trained.WEIGHTS.rglob("*.safetensors"))
    return {
        str(file.relative_to(demo_trained.WEIGHTS)): hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in files
        if "loras" not in file.parts
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--first", type=int, default=8, help="number of the first scene; K was chosen on those before")
    parser.add_argument("--calibration", type=int, default=2, help="clips that the curves are measured on")
    parser.add_argument("--k", type=int, nargs="+", default=[4], help="how many steps in a row MagCache may leave out")
    parser.add_argument("--modes", nargs="+", choices=list(THRESHOLDS), default=["fast", "faster", "balanced"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=192, help="width and height")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    with Studio(size=options.size) as studio:
        for curves, table in measure(studio, options):
            result = {
                "weights": hashes(),
                "prompts": options.prompts,
                "first": options.first,
                "calibration": options.calibration,
                "steps": options.steps,
                "size": f"{options.size}x{options.size}x17",
                "minutes": round((time.perf_counter() - began) / 60, 1),
                "curves": means(curves),
                "cases": table,
            }
            print(f"wrote {reporting.write(options.output, 'mag-cache', result, 'torch', 'diffusers')}", flush=True)


def means(curves: Curves) -> dict[str, dict[str, float]]:
    return {
        f"expert {expert}, {'without' if without else 'with'} the prompt": {
            str(step): round(statistics.fmean(found), 4) for step, found in sorted(curve.items())
        }
        for (expert, without), curve in curves.ratios.items()
    }


if __name__ == "__main__":
    main()
