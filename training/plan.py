"""The parts of the training in their order, with the seed, the sizes and the steps of the full run.

The clock may end a part earlier (`--minutes`): the card in worker/demo_weights tells what the shipped weights had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from training.experts import ExpertPlan, Side
from training.lora import LoraPlan
from training.text import TextPlan
from training.vae import VaePlan
from worker.models import I2V_A14B, T2V_A14B, ModelSpec

SEED = 22
TEXT, VAE = TextPlan(), VaePlan()
# Clips a size.
CLIPS: Mapping[int, int] = MappingProxyType({64: 4000, 128: 1500, 256: 260})
NORMAL_CLIPS = 40
SERVED_SIZE = 256
MODELS: Mapping[str, ModelSpec] = MappingProxyType({"t2v": T2V_A14B, "i2v": I2V_A14B})
SIDES: tuple[Side, ...] = ("high", "low")


@dataclass(frozen=True, slots=True)
class Stage:
    """Training of one model on clips of one size, from the weights of `start` or from nothing."""

    name: str
    size: int
    start: str | None
    plan: ExpertPlan


# An expert serves both tasks: for text-to-video the channels of the image are zero, and left out of the shipped
# weights. Text-to-video is sampled at shift 12 and image-to-video at 5; the high-noise experts train between.
_SHIFT = 8.0
_BOUNDARIES: Mapping[Side, float] = MappingProxyType(
    {"high": T2V_A14B.boundary_ratio or 0.0, "low": I2V_A14B.boundary_ratio or 1.0, "all": 0.0}
)


def _stage(side: Side, size: int, start: str | None, steps: int, batch: int, learning_rate: float) -> Stage:
    plan = ExpertPlan(side, "both", _BOUNDARIES[side], _SHIFT, steps, batch, learning_rate)
    return Stage(f"{side}{size}", size, start, plan)


def _expert(side: Side) -> tuple[Stage, ...]:
    """Small clips teach what the words mean, large ones the size that is served."""
    return (
        _stage(side, 64, "all64", 2500, 12, 2e-3),
        _stage(side, 128, f"{side}64", 800, 6, 1.5e-3),
        _stage(side, 256, f"{side}128", 500, 4, 1e-3),
    )


STAGES: tuple[Stage, ...] = (_stage("all", 64, None, 300, 12, 2.5e-3), *_expert("high"), *_expert("low"))
TURBO = LoraPlan(steps=400)
STYLE = LoraPlan(steps=200)
TEACHER_CLIPS, TEACHER_STEPS, TEACHER_GUIDANCE = 192, 24, 3.0
