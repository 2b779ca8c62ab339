"""The parts of the training in their order, with the seed, the sizes and the steps of the full run.

The clock may end a part earlier (`--minutes`): the card in worker/weights/sources/demo_weights says what the shipped
weights had.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from training.experts import ExpertPlan, Side
from training.lora import LoraPlan
from training.text import TextPlan
from training.vae import VaePlan
from worker.request import ModelSpec
from worker.request.catalogue import I2V_A14B, T2V_A14B

SEED = 22
TEXT, VAE = TextPlan(), VaePlan()
# Clips a set, by size; the first set is one of simple scenes.
SIMPLE_SIZE, SIMPLE_CLIPS = 64, 2000
CLIPS: Mapping[int, int] = MappingProxyType({64: 4000, 128: 1500, 256: 1600})
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
    simple: bool = False


# An expert serves both tasks: for text-to-video the channels of the image are zero, and left out of the shipped
# weights. Text-to-video is sampled at shift 12 and image-to-video at 5; the high-noise experts train between.
_SHIFT = 8.0
_BOUNDARIES: Mapping[Side, float] = MappingProxyType(
    {"high": T2V_A14B.boundary_ratio or 0.0, "low": I2V_A14B.boundary_ratio or 1.0}
)
# Above this sigma nothing can be seen of a clip: what is learned is what the caption says.
_UNSEEN = 0.98


def _stage(side: Side, size: int, start: str, steps: int, batch: int, learning_rate: float) -> Stage:
    plan = ExpertPlan(side, "both", _BOUNDARIES[side], _SHIFT, steps, batch, learning_rate)
    return Stage(f"{side}{size}", size, start, plan)


_FIRST = ExpertPlan("high", "both", _UNSEEN, _SHIFT, steps=1500, batch=12, learning_rate=2e-3)
STAGES: tuple[Stage, ...] = (
    Stage("simple64", SIMPLE_SIZE, None, _FIRST, simple=True),
    _stage("high", 64, "simple64", 2500, 12, 2e-3),
    _stage("high", 128, "high64", 500, 6, 1.5e-3),
    _stage("high", 256, "high128", 1700, 4, 1e-3),
    _stage("low", 128, "high64", 700, 6, 2e-3),
    _stage("low", 256, "low128", 3000, 4, 1e-3),
)
TURBO = LoraPlan(steps=200)
STYLE = LoraPlan(steps=150)
TEACHER_CLIPS, TEACHER_STEPS, TEACHER_GUIDANCE = 64, 16, 3.0
