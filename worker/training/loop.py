"""The training loop: learning rate, optimizer step, and the state that a run goes on from.

The demo model's own training (`training/`) runs on it too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

MAX_NORM = 1.0
_LEAST_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning rate that rises over `warm_up` steps and falls to a fiftieth of `peak` along a half cosine."""

    peak: float
    warm_up: int
    steps: int

    def rate(self, step: int, *, along: float | None = None) -> float:
        """The rate of `step`; `along` (0 to 1) stands for the share of the steps where the clock decides."""
        done = min(max(step / max(self.steps, 1), along or 0.0), 1.0)
        falling = _LEAST_SHARE + (1 - _LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * min((step + 1) / max(self.warm_up, 1), falling)

    def apply(self, optimizer: torch.optim.Optimizer, step: int, *, along: float | None = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step, along=along)


def descend(
    parameters: Iterable[torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    schedule: Schedule,
    step: int,
    *,
    along: float | None = None,
) -> float:
    """One optimizer step on the gradients that `parameters` have, which are cleared; returns their norm."""
    norm = float(torch.nn.utils.clip_grad_norm_(list(parameters), MAX_NORM))
    for optimizer in optimizers:
        schedule.apply(optimizer, step, along=along)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return norm
