"""The `train` of a payload becomes a `TrainingJob`: every value settled, all problems reported at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from worker.request.catalogue import CATALOGUE, ModelSpec
from worker.request.parse import DEFAULT_LIMITS, UrlCheck, draw_seed
from worker.request.payload import Limits

Expert = Literal["high", "low"]


@dataclass(frozen=True, slots=True)
class ExpertTraining:
    """How one expert is trained: optimizer steps, and the peak learning rate. `expert` is None where there is one."""

    expert: Expert | None
    steps: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class TrainingRequest:
    """One training with every value settled.

    `experts` are in the order of training, high before low. `width` and `height` are pixels, multiples of the model's
    stride; `num_frames`, at the model's rate, is `frame_stride` * k + 1.
    """

    training_data_url: str
    model: ModelSpec
    experts: tuple[ExpertTraining, ...]
    rank: int
    alpha: float
    trigger_phrase: str
    caption_dropout: float
    width: int
    height: int
    num_frames: int
    auto_scale_input: bool
    validation_split: float
    sample_prompts: tuple[str, ...]
    checkpoint_every: int
    seed: int
    dry_run: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A training that can start."""

    job_id: str
    train: TrainingRequest


def is_training(payload: object) -> bool:
    """Whether a payload asks for a training. Never raises."""
    return isinstance(payload, dict) and payload.get("train") is not None


def parse_training(
    payload: object,
    *,
    default_job_id: str,
    limits: Limits = DEFAULT_LIMITS,
    catalogue: Sequence[ModelSpec] = CATALOGUE,
    check_url: UrlCheck | None = None,
    new_seed: Callable[[], int] = draw_seed,
) -> TrainingJob:
    """Read the `input` of a RunPod event that has `train`; the arguments and errors are those of `parse.parse`."""
    raise NotImplementedError
