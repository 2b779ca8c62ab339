"""Which noise each expert learns: the part of the shifted schedule in which inference uses it.

A step of the schedule at the share u (0 to 1) of its way has the sigma s u / (1 + (s - 1) u), s being the flow shift.
The boundary b between the experts is at u = b / (s - (s - 1) b), so that of T2V's steps (b 0.875, shift 12) 63% are the
high-noise expert's, of I2V's (0.9, 5) 36%. Drawn evenly in u, sigmas are as dense as the steps of inference.
"""

from __future__ import annotations

import hashlib

import torch

from worker.request import ModelSpec
from worker.request.training import Expert

# Steps of the golden ratio fill the interval evenly, however many of them are taken.
_GOLDEN = 0.6180339887498949
HELD_OUT_TIMESTEPS = 4


def share(spec: ModelSpec, expert: Expert | None) -> tuple[float, float]:
    """The part of the schedule that belongs to an expert, both ends between 0 (no noise) and 1 (noise alone)."""
    if expert is None or spec.boundary_ratio is None:
        return 0.0, 1.0
    shift, boundary = spec.flow_shift, spec.boundary_ratio
    edge = boundary / (shift - (shift - 1) * boundary)
    return (edge, 1.0) if expert == "high" else (0.0, edge)


def sigma(spec: ModelSpec, expert: Expert | None, along: float) -> float:
    """The sigma at the share `along` (0 to 1) of the expert's part; the timestep is 1000 times that."""
    low, high = share(spec, expert)
    place = low + (high - low) * along
    return spec.flow_shift * place / (1 + (spec.flow_shift - 1) * place)


def along(seed: int, step: int) -> float:
    """The share of the expert's part that optimizer step `step` trains: random, and even over any run of steps."""
    offset = float(torch.rand((), generator=generator(seed, "timesteps"), dtype=torch.float64))
    return (offset + _GOLDEN * (step + 1)) % 1.0


def held_out() -> tuple[float, ...]:
    """The fixed shares at which held-out loss is measured."""
    return tuple((number + 0.5) / HELD_OUT_TIMESTEPS for number in range(HELD_OUT_TIMESTEPS))


def generator(seed: int, *place: object) -> torch.Generator:
    """Random numbers for one place of the training: the same whenever it is reached, after a restart too."""
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
