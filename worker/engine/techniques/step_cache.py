"""The step cache (`step_cache`): steps in which nothing much changes leave out their blocks.

The residual of the last step that was computed in full is added instead. The passes with and without the prompt decide
for themselves, and so does each expert, by one of two rules. First Block Cache, for every model: where the residual of
the first block differs from that of the last full step by less than a threshold, the other blocks are left out.
MagCache (`magcache.py`), where the volume has the model's curves: they say which passes leave out all blocks.
Diffusers' own hooks are put on for one run and taken off after it: no state outlives a run, however it ends, and a run
without the cache meets none.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

from worker.engine.techniques import magcache
from worker.engine.techniques.base import Run, Technique

logger = logging.getLogger(__name__)

# Relative change of the first block's residual below which the others are left out. `balanced` is Diffusers' default
# (0.05). Both await calibration on the real weights.
THRESHOLDS = {"balanced": 0.05, "fast": 0.1}
# By the curves: the error below which a pass is left out. With it as many passes of the demo model are left out as by
# the first block. `balanced` has none: the first block costs no more there.
LIMITS = {"fast": 0.018}
# The first steps settle the composition and the last ones the detail: this share of the steps, and at least one, is
# computed in full at either end.
FULL_SHARE = 0.1
_ALWAYS_COMPUTE = -math.inf


@dataclass(slots=True)
class _Passes:
    """Forward passes of the experts, how many of them left blocks out, and whose turn it is."""

    expert: WanTransformer3DModel
    all: int = 0
    cached: int = 0


class StepCache(Technique):
    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        wanted = run.request.step_cache
        if wanted == "off" or self.calibrating:
            run.parameters["step_cache"] = wanted = "off"
        elif (reason := _hindrance(run, self.setup.crew_size)) is not None:
            run.refuse("step_cache", reason)
            wanted = "off"
        if wanted == "off":
            with self._measured(run) if self.calibrating else nullcontext():
                yield
            return
        run.parameters["step_cache"] = wanted
        passes = _Passes(run.experts[0])
        curves = self._curves(run, wanted)
        run.parameters["step_cache_rule"] = "first_block" if curves is None else "magcache"
        with ExitStack() as stack:
            for number, expert in enumerate(run.experts):
                first_block = FirstBlock(THRESHOLDS[wanted])
                rule = magcache.ByCurves(curves.experts[number], LIMITS[wanted]) if curves else first_block
                stack.enter_context(_cached(expert, rule, run, passes))
            yield
        run.parameters["step_cache_share"] = round(passes.cached / max(passes.all, 1), 3)

    def _curves(self, run: Run, wanted: str) -> magcache.Curves | None:
        """The curves that decide in this run; None where the first block does, with the reason in the log."""
        if wanted not in LIMITS:
            return None
        curves = None if run.adapters else magcache.stored(self.setup.settings, run.spec)
        if curves is None:
            why = "with LoRAs the model's curves are not right" if run.adapters else "this model has no curves"
            logger.info("the step cache goes by the first block, not by MagCache: %s", why)
        return curves

    @contextmanager
    def _measured(self, run: Run) -> Iterator[None]:
        """Store the curves of a run that is computed in full; `step_cache_curves` is their file."""
        measuring = magcache.Measuring()
        with ExitStack() as stack:
            for number, expert in enumerate(run.experts):
                stack.enter_context(measuring.of(number, expert))
            yield
        curves = measuring.curves(len(run.experts))
        if curves is None or run.adapters or run.steps_done != run.steps:
            run.warnings.append(f"no curves were stored: {magcache.NEEDS}")
            return
        try:
            run.parameters["step_cache_curves"] = str(magcache.store(self.setup.settings, run.spec, curves))
        except OSError as failure:
            run.warnings.append(f"the curves could not be stored: {failure.strerror or failure}")


class FirstBlock:
    """Decides by the first block of one expert in one run."""

    hook = _FBC_LEADER_BLOCK_HOOK

    def __init__(self, threshold: float) -> None:
        self.config = FirstBlockCacheConfig(threshold=threshold)

    def decide(self, leader: Any, _: Mapping[str, torch.Tensor], *, full: bool) -> None:
        leader.threshold = _ALWAYS_COMPUTE if full else self.config.threshold


def _hindrance(run: Run, crew_size: int) -> str | None:
    """Why the cache cannot work in this run, or None."""
    if crew_size > 1:
        return "several GPUs share each step, and each would decide by its own part of the tokens"
    if run.request.quality_preset == "turbo":
        return "the few steps of turbo are too far apart to leave one out"
    if min(len(expert.blocks) for expert in run.experts) < 2:
        return "this model has a single block, behind which there is nothing to leave out"
    return None


@contextmanager
def _cached(
    expert: WanTransformer3DModel, rule: FirstBlock | magcache.ByCurves, run: Run, passes: _Passes
) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(_taken_off, expert)
        expert.enable_cache(rule.config)
        leader: Any = HookRegistry.check_if_exists_or_initialize(expert.blocks[0]).get_hook(rule.hook)

        def before(_: object, __: object, arguments: Mapping[str, torch.Tensor]) -> None:
            if passes.expert is not expert:  # the other one is done, and its residuals are gigabytes
                passes.expert._reset_stateful_cache()
                passes.expert = expert
            rule.decide(leader, arguments, full=in_full(run.steps_done, run.steps))

        def after(*_: object) -> None:
            passes.all += 1
            passes.cached += not leader.state_manager.get_state().should_compute

        stack.callback(expert.register_forward_pre_hook(before, with_kwargs=True).remove)
        stack.callback(expert.register_forward_hook(after).remove)
        yield


def _taken_off(expert: WanTransformer3DModel) -> None:
    if expert.is_cache_enabled:
        expert.disable_cache()


def in_full(step: int, steps: int | None) -> bool:
    """Whether a step, counted from 0, is one of the first or last; `steps` is None before the first is done."""
    if steps is None:
        return True
    margin = max(1, round(FULL_SHARE * steps))
    return step < margin or step >= steps - margin
