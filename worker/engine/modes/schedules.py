"""Which scheduler a run gets, with what shift; among them those of the distilled experts (`quality_preset: turbo`).

Every run gets a scheduler of its own, so that none inherits another's state. lightx2v's Wan 2.2 Lightning LoRAs were
trained for Euler steps at the timesteps 1000, 937.5, 833.3 and 625, two on each expert, at shift 5 and without
guidance. Diffusers' own spacing for 4 steps gives 1000, 910, 717 and 24, which is not what they were trained for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SchedulerMixin, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from worker.request import ModelSpec, VideoRequest

NUM_STEPS = 4
FLOW_SHIFT = 5.0
SIGMAS = (1.0, 0.75, 0.5, 0.25)
_TRAIN_TIMESTEPS = 1000


class DistilledScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps at the four trained timesteps, whatever spacing the pipeline asks for.

    `model_outputs` ends with the estimate of the clean latents, x - sigma * v, as that of UniPC does.
    """

    model_outputs: list[torch.Tensor]

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **_: Any
    ) -> None:
        """Raises ValueError for another number of steps: the distilled experts know these four only."""
        if num_inference_steps != NUM_STEPS:
            raise ValueError(f"the distilled schedule has {NUM_STEPS} steps, not {num_inference_steps}")
        super().set_timesteps(sigmas=list(SIGMAS), device=device)

    def step(
        self, model_output: torch.Tensor, timestep: float | torch.Tensor, sample: torch.Tensor, **options: Any
    ) -> Any:
        if self.step_index is None:
            self._init_step_index(timestep)
        self.model_outputs = [sample.float() - self.sigmas[self.step_index] * model_output]
        return super().step(model_output, timestep, sample, **options)


class HybridScheduler(UniPCMultistepScheduler):  # type: ignore[misc]
    """UniPC steps of the model's own schedule as far as the boundary, then the two distilled low-noise steps.

    Of `num_inference_steps` at the model's shift those run that the high-noise expert would take: 13 of 20 for T2V, 8
    of 20 for I2V. The last of them goes to the noise at which the low-noise expert was distilled to begin (t = 833.3),
    and Euler steps at 833.3 and 625 follow. No multistep history crosses the boundary: it would mix two experts.
    """

    boundary_ratio = 0.0
    model_outputs: list[torch.Tensor]
    timesteps: torch.Tensor
    sigmas: torch.Tensor

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device, **options)
        # As the pipeline asks: the expert follows from the timestep, which is cut to an integer.
        high = int((self.timesteps >= self.boundary_ratio * _TRAIN_TIMESTEPS).sum())
        low = torch.tensor([_shifted(sigma) for sigma in SIGMAS[2:]])
        self.timesteps = torch.cat([self.timesteps[:high].float(), (low * _TRAIN_TIMESTEPS).to(self.timesteps.device)])
        self.sigmas = torch.cat([self.sigmas[:high], low, torch.zeros(1)])
        self.num_inference_steps = len(self.timesteps)

    def step(
        self, model_output: torch.Tensor, timestep: int | torch.Tensor, sample: torch.Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        if self.step_index is None:
            self._init_step_index(timestep)
        sigma, following = (float(self.sigmas[self.step_index + ahead]) for ahead in (0, 1))
        if sigma > _shifted(SIGMAS[2]) + 1e-4:
            return super().step(model_output, timestep, sample, return_dict=return_dict)
        self.model_outputs = [*self.model_outputs[:-1], sample - sigma * model_output.to(sample.dtype)]
        answer = sample + (following - sigma) * model_output.to(sample.dtype)
        self._step_index += 1
        return SchedulerOutput(prev_sample=answer) if return_dict else (answer,)


def _shifted(sigma: float) -> float:
    return FLOW_SHIFT * sigma / (1 + (FLOW_SHIFT - 1) * sigma)


def scheduler() -> DistilledScheduler:
    return DistilledScheduler(num_train_timesteps=_TRAIN_TIMESTEPS, shift=FLOW_SHIFT)


def hybrid(config: dict[str, Any], *, flow_shift: float, boundary_ratio: float) -> HybridScheduler:
    """`config` is that of the model's own scheduler."""
    made: HybridScheduler = HybridScheduler.from_config(config, flow_shift=flow_shift)
    made.boundary_ratio = boundary_ratio
    return made


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
        return Schedule(hybrid(config, flow_shift=shift, boundary_ratio=spec.boundary_ratio), shift)
    ignored = shift != FLOW_SHIFT and request.flow_shift is not None
    note = f"{request.at('flow_shift')}: ignored, the steps of turbo are fixed at shift {FLOW_SHIFT:g}"
    return Schedule(scheduler(), FLOW_SHIFT, (note,) if ignored else ())
