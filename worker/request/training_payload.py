"""The `train` of a payload as it is sent: its pydantic models, strict as those of `payload.py`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from worker.request.payload import DEFAULT_MAX_FRAMES, MAX_SEED, JobInput, Limits, Resolution, Sent, shown
from worker.request.texts import Prompt, Trimmed, Url

TrainingModel = Literal["a14b-t2v", "a14b-i2v", "5b"]

MIN_STEPS, MAX_STEPS = 10, 10_000
MAX_RATE = 0.1
MAX_RANK = 128
MAX_TRIGGER_CHARACTERS = 200
MAX_SAMPLE_PROMPTS = 4


class StepsOfExperts(Sent):
    """`number_of_steps`, one for each expert."""

    high: int = Field(1_000, ge=MIN_STEPS, le=MAX_STEPS)
    low: int = Field(1_000, ge=MIN_STEPS, le=MAX_STEPS)


class RatesOfExperts(Sent):
    """`learning_rate`, one for each expert."""

    high: float = Field(1e-4, gt=0, le=MAX_RATE)
    low: float = Field(1e-4, gt=0, le=MAX_RATE)


def _or_of_experts(schema: dict[str, Any]) -> None:
    """A number, or an object with one for each expert: `parse_training` reads those by themselves."""
    kind = {key: schema.pop(key) for key in ("type", "minimum", "exclusiveMinimum", "maximum") if key in schema}
    either = {"anyOf": [kind, {"type": "null"}]}
    pair = {"type": "object", "properties": {"high": either, "low": either}}
    schema["anyOf"] = [kind, pair, {"type": "null"}]


class TrainInput(Sent):
    """One LoRA training as it is sent."""

    training_data_url: Url = Field(description="http(s) URL of a ZIP of videos and pictures with captions")
    model: TrainingModel = Field("a14b-t2v", description="Text-to-video, image-to-video, or the small model")
    experts: Literal["both", "high", "low"] = Field("both", description="Which experts of an A14B model are trained")
    number_of_steps: int = Field(
        1_000,
        ge=MIN_STEPS,
        le=MAX_STEPS,
        description="Optimizer steps per expert; or {high, low}",
        json_schema_extra=_or_of_experts,
    )
    learning_rate: float = Field(
        1e-4, gt=0, le=MAX_RATE, description="At its peak; or {high, low}", json_schema_extra=_or_of_experts
    )
    rank: int = Field(16, ge=1, le=MAX_RANK, description="Of the LoRA's matrices: more can learn more, in larger files")
    alpha: float | None = Field(
        None, ge=1, le=MAX_RANK, description="It is scaled by alpha / rank; rank where not given"
    )
    trigger_phrase: Trimmed = Field(
        "",
        max_length=MAX_TRIGGER_CHARACTERS,
        description="Put before each caption that does not begin with it",
    )
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of the steps without a caption, so that guidance works"
    )
    resolution: Resolution | None = Field(
        None, description="The area of 832x480, 1024x576, 1280x720; 480p where not given"
    )
    num_frames: int | None = Field(
        None,
        json_schema_extra={"minimum": 1, "maximum": DEFAULT_MAX_FRAMES},
        description="Of a clip, at the model's rate; 81 where not given, lowered to the next 4k + 1 with a warning",
    )
    auto_scale_input: bool = Field(
        True, description="Scale and crop what has another size; false refuses it, file by file"
    )
    validation_split: float = Field(
        0.1, ge=0, le=0.5, description="Share of the files that is held out, to measure what was learned"
    )
    sample_prompts: list[Prompt] = Field(
        default_factory=list,
        max_length=MAX_SAMPLE_PROMPTS,
        description="A video of each with both experts, before and after",
    )
    checkpoint_every: int = Field(250, ge=1, le=MAX_STEPS, description="Steps from one checkpoint to the next")
    seed: int | None = Field(
        None, ge=-1, le=MAX_SEED, description="Drawn at random where not given, or -1; always reported"
    )
    dry_run: bool = Field(
        False, description="The report on the data set, the plan, seconds and cost; nothing is trained"
    )

    @field_validator("num_frames")
    @classmethod
    def _frames(cls, value: int | None, info: ValidationInfo) -> int | None:
        limits: Limits = info.context if info.context is not None else Limits()
        if value is not None and not 1 <= value <= limits.max_frames:
            raise ValueError(f"must be 1 to {limits.max_frames}, not {shown(value)}")
        return value


class TrainingInput(JobInput):
    """One LoRA training with the fields of the job beside it."""

    train: TrainInput
