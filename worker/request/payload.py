"""The payload as it is sent: its pydantic models.

Types are strict: `true` is not 1 and `"50"` is not 50, but an integer may stand for a float. Bounds that an operator
can move (`Limits`) reach the validators as validation context. Knows nothing of defaults that depend on the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT, ModelName

WebhookEvent = Literal["progress", "completed", "failed"]
QualityPreset = Literal["draft", "standard", "high", "ultra", "turbo"]
TurboVariant = Literal["full", "hybrid"]
StepCacheMode = Literal["off", "balanced", "fast"]
CameraMotion = Literal[
    "pan_left",
    "pan_right",
    "pan_up",
    "pan_down",
    "zoom_in",
    "zoom_out",
    "dolly_in",
    "dolly_out",
    "orbit_left",
    "orbit_right",
    "crane_up",
    "crane_down",
    "static",
    "handheld",
]

OutputFormat = Literal["mp4", "webm", "gif", "webp"]
OutputCodec = Literal["h264", "hevc", "av1", "vp9", "gif", "webp"]
VideoQuality = Literal["low", "medium", "high", "maximum"]
Resolution = Literal["480p", "580p", "720p"]
AspectRatio = Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "auto"]

MAX_PROMPT_CHARACTERS = 4000
MAX_SEED = 2**63 - 1
MAX_LORAS = 8
MAX_WEBHOOK_EVENTS = 16
MIN_SIDE, MAX_SIDE = 256, 1920
MIN_FRAMES = 5
DEFAULT_MAX_VIDEOS, DEFAULT_MAX_PIXELS, DEFAULT_MAX_FRAMES = 16, 921_600, 161
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:\S+")
_JOB_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator can move (settings of the same names)."""

    max_videos_per_job: int = DEFAULT_MAX_VIDEOS
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_frames: int = DEFAULT_MAX_FRAMES


def shown(value: float) -> str:
    """A number that was sent. Python writes no integer of more than 4,300 digits."""
    return f"{value}" if abs(value) < 10**20 else "a number of that size"


def _text(value: str) -> str:
    # A lone surrogate passes JSON and pydantic, and then no log, webhook or storage call can encode it.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("must be a string of valid Unicode") from None
    return value


def _url(value: str) -> str:
    if not _URL.fullmatch(value):
        raise ValueError("must be a URL such as https://example.com/name")
    return value


def _job_id(value: str) -> str:
    if not _JOB_ID.fullmatch(value) or ".." in value or value == ".":
        raise ValueError("must be 1 to 128 of A-Z a-z 0-9 . _ - and neither '.' nor hold '..'")
    return value


Text = Annotated[str, AfterValidator(_text)]
Url = Annotated[str, AfterValidator(_text), AfterValidator(_url)]
JobId = Annotated[str, AfterValidator(_job_id)]


class LoraInput(BaseModel):
    """One LoRA of a video request."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    source: Annotated[Text, Field(min_length=1, max_length=2048)] = Field(
        description="https URL, hub repo/file, or a file name in MODEL_CACHE_DIR/loras"
    )
    scale: float = Field(1.0, ge=-100, le=100, description="How strongly it applies; the range keeps weights finite")
    expert: Literal["high", "low", "both"] = "both"


class VideoInput(BaseModel):
    """One video request as it is sent."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    prompt: Text = Field(
        description="What the video shows; 1 to 4,000 characters after trimming",
        json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS},
    )
    negative_prompt: Text = Field(OFFICIAL_NEGATIVE_PROMPT, description='What to avoid; "" means none')
    reference_image_url: Url | None = Field(
        None, description="First frame: http(s) URL or data:image/...;base64, URI; makes it image-to-video"
    )
    last_image_url: Url | None = Field(None, description="Last frame, beside reference_image_url")
    reference_video_url: Url | None = Field(None, description="Video-to-video; not together with an image")
    strength: float | None = Field(
        None, gt=0, le=1, description="Video-to-video: how much is redrawn; 0.8 where not given"
    )
    height: int | None = Field(
        None,
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Pixels; 480 where not given, or from the image's aspect ratio where neither side is given",
    )
    width: int | None = Field(None, ge=MIN_SIDE, le=MAX_SIDE, description="Pixels; 832 where not given")
    resolution: Resolution | None = Field(
        None, description="The area of 832x480, 1024x576, 1280x720; not beside height or width"
    )
    aspect_ratio: AspectRatio | None = Field(
        None, description="auto with a source, else 16:9, where not given; not beside height or width"
    )
    num_frames: int = Field(
        81, validate_default=True, json_schema_extra={"maximum": DEFAULT_MAX_FRAMES, "minimum": MIN_FRAMES}
    )
    fps: int | None = Field(None, ge=1, le=60, description="16 where not given; 24 for the 5b model")
    target_fps: int | None = Field(
        None, ge=2, le=60, description="Above fps: frames are interpolated along the motion, the duration stays"
    )
    num_inference_steps: int = Field(50, ge=1, le=100)
    guidance_scale: float = Field(5.0, ge=1, le=20, description="High-noise expert; 1 = no guidance")
    guidance_scale_2: float | None = Field(
        None, ge=1, le=20, description="Low-noise expert; guidance_scale where not given"
    )
    flow_shift: float | None = Field(None, ge=0.5, le=25, description="The model's official value where not given")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn at random where not given; always reported")
    camera_motion: CameraMotion | None = None
    enhance_prompt: bool = True
    quality_preset: QualityPreset | None = Field(None, description="Overrides num_inference_steps and guidance")
    turbo_variant: TurboVariant = Field(
        "full", description="With turbo; hybrid: the high-noise expert undistilled and guided, for more motion"
    )
    step_cache: StepCacheMode = Field(
        "off", description="Leaves out work in steps that change little; faster, and not exact"
    )
    model: ModelName = "a14b"
    loras: list[LoraInput] = Field(default_factory=list, max_length=MAX_LORAS)
    thumbnail: bool = Field(True, description="A JPEG poster beside the video")
    prompt_expansion: bool = Field(False, description="Rewrite the prompt by the operator's language model")
    output_format: OutputFormat = "mp4"
    output_codec: Literal["h264", "hevc", "av1", "vp9"] | None = Field(
        None, description="h264 where not given, vp9 in a WebM"
    )
    video_quality: VideoQuality = Field("high", description="H.264 at CRF 28, 23, 18, 12, and its equals")
    frames_zip: bool = Field(False, description="A ZIP of the frames as PNG beside the video")
    response_format: Literal["url", "base64"] = Field("url", description="base64: the file is in the answer")
    upload_url: Url | None = Field(None, description="A presigned PUT address of your own store for this video")

    @field_validator("prompt")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        value = value.strip()
        if not 1 <= len(value) <= MAX_PROMPT_CHARACTERS:
            raise ValueError(f"must be 1 to {MAX_PROMPT_CHARACTERS} characters after trimming, got {len(value)}")
        return value

    @field_validator("num_frames")
    @classmethod
    def _within_max_frames(cls, value: int, info: ValidationInfo) -> int:
        limits: Limits = info.context if info.context is not None else Limits()
        if not MIN_FRAMES <= value <= limits.max_frames:
            raise ValueError(f"must be {MIN_FRAMES} to {limits.max_frames}, not {shown(value)}")
        return value


class JobInput(BaseModel):
    """The fields of a job that stand beside its video requests."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    job_id: JobId | None = Field(
        None,
        description="Part of the storage key; the RunPod job id where not given",
        json_schema_extra={"pattern": f"^{_JOB_ID.pattern}$"},
    )
    webhook_url: Url | None = Field(None, description="http(s) URL that receives the events")
    webhook_events: list[WebhookEvent] = Field(
        default_factory=lambda: list(get_args(WebhookEvent)), max_length=MAX_WEBHOOK_EVENTS
    )


class FullInput(JobInput):
    """The whole `input` of a RunPod event, for the exported schema."""

    job_request_params: list[VideoInput] = Field(min_length=1, json_schema_extra={"maxItems": DEFAULT_MAX_VIDEOS})


def is_job_id(value: object) -> bool:
    return isinstance(value, str) and _accepts(_job_id, value)


def is_url(value: object) -> bool:
    return isinstance(value, str) and _accepts(_url, value) and _accepts(_text, value)


def _accepts(check: Callable[[str], str], value: str) -> bool:
    try:
        check(value)
    except ValueError:
        return False
    return True
