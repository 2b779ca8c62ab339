"""Which scheduler a run gets, with what shift. Every run gets one of its own, so that none inherits another's state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers import SchedulerMixin, UniPCMultistepScheduler

from worker.acceleration import distilled
from worker.models import ModelSpec
from worker.request import VideoRequest


@dataclass(frozen=True, slots=True)
class Schedule:
    """`flow_shift` is the shift that really runs; `warnings` tell what of the request does not."""

    scheduler: SchedulerMixin
    flow_shift: float
    warnings: tuple[str, ...] = ()


def choose(request: VideoRequest, spec: ModelSpec, config: dict[str, Any]) -> Schedule:
    """The distilled schedule for `turbo`, else UniPC with the request's shift or the model's official one.

    The scheduler files of the A14B repositories say shift 3, with which the high-noise expert gets 13 of 40 steps
    instead of 26: the shift is always set.
    """
    shift = spec.flow_shift if request.flow_shift is None else request.flow_shift
    if request.quality_preset != "turbo":
        return Schedule(UniPCMultistepScheduler.from_config(config, flow_shift=shift), shift)
    if request.turbo_variant == "hybrid" and spec.boundary_ratio is not None:
        return Schedule(distilled.hybrid(config, flow_shift=shift, boundary_ratio=spec.boundary_ratio), shift)
    ignored = shift != distilled.FLOW_SHIFT and request.flow_shift is not None
    note = f"{request.at('flow_shift')}: ignored, the steps of turbo are fixed at shift {distilled.FLOW_SHIFT:g}"
    return Schedule(distilled.scheduler(), distilled.FLOW_SHIFT, (note,) if ignored else ())
