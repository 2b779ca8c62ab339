"""MagCache beside the first block, the two rules of the step cache, at the same share of passes left out.

    python -m benchmarks.mag_cache [--prompts 20] [--first 8] [--modes fast faster balanced] [--steps 20] [--size 192]

Both are the worker's own. The curves are measured as `videogen calibrate` does: on one clip, of another prompt than
those that are compared. The limit of MagCache is the least with which it leaves out as many passes as the first block
did on the same prompts, or more. Held-out scenes on the trained demo model, judged as `benchmarks.quality` does.

The worker's K was chosen on scenes 0 to 7, which `--first 8` leaves out. What decides is the mean over the prompts of
MagCache's figure less that of the first block for the same prompt (`gain`), beside its standard error. Writes
`mag-cache-DATE.json` beside the others, with the hashes of the weights.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import reporting
from benchmarks.quality import figures, psnr_db
from benchmarks.quality_cases import Case, Clip, Studio, asked_scenes
from benchmarks.reporting import RESULTS
from benchmarks.step_cache import ssim
from training.scenes import Scene
from worker.engine.techniques import magcache, step_cache
from worker.weights.sources import demo_trained

# Of the first block: those of the service, and one that leaves out more.
THRESHOLDS = {**step_cache.THRESHOLDS, "faster": 0.2}


def measured(studio: Studio, scene: Scene, steps: int) -> magcache.Curves:
    """The curves of the demo model, by one clip; nothing is stored."""
    case = Case("calibration")
    with mock.patch.object(magcache, "store") as store, studio.engine(case).techniques.calibrating():
        studio.clips(case, [scene], steps)
    curves: magcache.Curves = store.call_args.args[2]
    return curves


def left_out(curves: magcache.Curves, limit: float, steps: int) -> int:
    """How many passes of a run of as many steps as the curves' own are left out."""
    count = first = 0
    for expert in curves.experts:
        for curve in expert:
            rule = magcache.Rule(curve, limit)
            for step, timestep in enumerate(curve.timesteps, first):
                count += rule.leaves_out(timestep, allowed=not step_cache.in_full(step, steps))
        first += len(expert[0].timesteps)
    return count


def least_limit(curves: magcache.Curves, share: float, steps: int) -> float:
    """The least limit with which at least `share` of all passes are left out, or the largest there is."""
    limits = [10 ** (exponent / 50) for exponent in range(-200, 101)]
    return next((limit for limit in limits if left_out(curves, limit, steps) >= share * 2 * steps), limits[-1])


def clips_of(
    studio: Studio, scenes: Sequence[Scene], steps: int, name: str, found: magcache.Curves | None, value: float
) -> list[Clip]:
    """Clips of the step cache: MagCache by the curves and the limit `value`, or the first block at this threshold."""
    with (
        mock.patch.object(magcache, "stored", return_value=found),
        mock.patch.dict(step_cache.THRESHOLDS, {"fast": value}),
        mock.patch.dict(step_cache.LIMITS, {"fast": value}),
    ):
        return studio.clips(Case(name, {"step_cache": "fast"}), scenes, steps)


def row(clips: Sequence[Clip], exact: Sequence[Clip], **more: Any) -> dict[str, Any]:
    pairs = [(clip.frames, other.frames) for clip, other in zip(clips, exact, strict=True)]
    each = {
        "each_db": [round(psnr_db(*pair), 2) for pair in pairs],
        "each_ssim": [round(ssim(*pair), 5) for pair in pairs],
    }
    share = statistics.fmean(clip.parameters["step_cache_share"] for clip in clips)
    likeness = statistics.fmean(each["each_ssim"])
    return {**figures(clips, exact), "exact_ssim": likeness, "left_out": share, **more, **each}


def gain(of: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """By how much each clip of a row is nearer to the exact one than the same clip of another row."""
    found: dict[str, Any] = {}
    for unit in ("db", "ssim"):
        each = [mine - other for mine, other in zip(of[f"each_{unit}"], over[f"each_{unit}"], strict=True)]
        found[unit] = statistics.fmean(each)
        found[f"{unit}_standard_error"] = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
        found[f"{unit}_nearer"] = sum(difference > 0 for difference in each)
    return found


def measure(studio: Studio, options: argparse.Namespace) -> Iterator[tuple[magcache.Curves, dict[str, dict[str, Any]]]]:
    """The curves, and the rows so far, after each mode."""
    steps: int = options.steps
    scenes = asked_scenes(options.first + options.prompts + 1)[options.first :]
    asked, other = scenes[:-1], scenes[-1]
    table: dict[str, dict[str, Any]] = {}

    def add(name: str, found: dict[str, Any]) -> dict[str, Any]:
        table[name] = found
        print(name, "  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
        return found

    curves = measured(studio, other, steps)
    exact = studio.clips(Case("exact"), asked, steps)
    for mode in options.modes:
        threshold = THRESHOLDS[mode]
        by_block = row(clips_of(studio, asked, steps, mode, None, threshold), exact, threshold=threshold)
        add(f"first block {mode}", by_block)
        limit = least_limit(curves, by_block["left_out"], steps)
        by_curves = row(clips_of(studio, asked, steps, mode, curves, limit), exact, limit=limit)
        add(f"MagCache as {mode}", {**by_curves, "gain": gain(by_curves, by_block)})
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
                "steps": options.steps,
                "size": f"{options.size}x{options.size}x17",
                "minutes": round((time.perf_counter() - began) / 60, 1),
                "curves": curves.model_dump(),
                "cases": table,
            }
            print(f"wrote {reporting.write(options.output, 'mag-cache', result, 'torch', 'diffusers')}", flush=True)


if __name__ == "__main__":
    main()
