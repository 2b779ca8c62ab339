"""The schedule of the 4-step distilled experts (`quality_preset: turbo`).

lightx2v's Wan 2.2 Lightning LoRAs were trained for Euler steps at the timesteps 1000, 937.5, 833.3 and 625, two on each
expert, at shift 5 and without guidance. Diffusers' own spacing for 4 steps gives 1000, 910, 717 and 24, which is not
what they were trained for.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

NUM_STEPS = 4
FLOW_SHIFT = 5.0
SIGMAS = (1.0, 0.75, 0.5, 0.25)


class DistilledScheduler(FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """Euler steps at the four trained timesteps, whatever spacing the pipeline asks for."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: str | torch.device | None = None, **_: Any
    ) -> None:
        """Raises ValueError for another number of steps: the distilled experts know these four only."""
        if num_inference_steps != NUM_STEPS:
            raise ValueError(f"the distilled schedule has {NUM_STEPS} steps, not {num_inference_steps}")
        super().set_timesteps(sigmas=list(SIGMAS), device=device)


def scheduler() -> DistilledScheduler:
    return DistilledScheduler(num_train_timesteps=1000, shift=FLOW_SHIFT)
