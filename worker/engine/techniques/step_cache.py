"""The step cache (`step_cache`): steps whose first block says that nothing much has changed leave out all the others.

First Block Cache, through Diffusers' own hooks on both experts: where the residual of the first block differs from that
of the last step computed in full by less than a threshold, the rest of that step's residual is added instead of being
computed. The passes with and without the prompt decide for themselves, and so does each expert. The hooks are put on
for one run and taken off after it: no state outlives a run, however it ends, and a run without the cache meets none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from diffusers import FirstBlockCacheConfig, WanTransformer3DModel
from diffusers.hooks import HookRegistry
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

from worker.engine.techniques.base import Run, Technique

# Relative change of the first block's residual below which the others are left out. `balanced` is Diffusers' default
# (0.05). Both await calibration on the real weights.
THRESHOLDS = {"balanced": 0.05, "fast": 0.1}
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
        if wanted == "off":
            run.parameters["step_cache"] = "off"
        elif (reason := _hindrance(run, self.setup.crew_size)) is not None:
            run.refuse("step_cache", reason)
            wanted = "off"
        if wanted == "off":
            yield
            return
        run.parameters["step_cache"] = wanted
        passes = _Passes(run.experts[0])
        with ExitStack() as stack:
            for expert in run.experts:
                stack.enter_context(_cached(expert, THRESHOLDS[wanted], run, passes))
            yield
        run.parameters["step_cache_share"] = round(passes.cached / max(passes.all, 1), 3)


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
def _cached(expert: WanTransformer3DModel, threshold: float, run: Run, passes: _Passes) -> Iterator[None]:
    with ExitStack() as stack:
        stack.callback(_taken_off, expert)
        expert.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        leader: Any = HookRegistry.check_if_exists_or_initialize(expert.blocks[0]).get_hook(_FBC_LEADER_BLOCK_HOOK)

        def before(*_: object) -> None:
            if passes.expert is not expert:  # the other one is done, and its residuals are gigabytes
                passes.expert._reset_stateful_cache()
                passes.expert = expert
            leader.threshold = _ALWAYS_COMPUTE if in_full(run.steps_done, run.steps) else threshold

        def after(*_: object) -> None:
            passes.all += 1
            passes.cached += not leader.state_manager.get_state().should_compute

        stack.callback(expert.register_forward_pre_hook(before).remove)
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
