"""The payload as it is sent: its pydantic models.

Types are strict: `true` is not 1 and `"50"` is not 50, but an integer may stand for a float and a whole float for an
integer. null is "not given" everywhere. Bounds that an operator can move (`Limits`) reach the validators as validation
context. Knows nothing of defaults that depend on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT, ModelName
from worker.request.texts import JOB_ID_PATTERN, MAX_PROMPT_CHARACTERS, JobId, Prompt, Source, Trimmed, Url

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
PreviewKind = Literal["off", "strip", "animated"]
AspectRatio = Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "auto"]

MAX_SEED = 2**63 - 1
MAX_LORAS = 8
MIN_SEGMENTS, MAX_SEGMENTS = 2, 12
MAX_OUTPUTS = 4
MAX_WEBHOOK_EVENTS = 16
MAX_PREVIEWS = 5
PREVIEW_AT = (0.15, 0.35, 0.6)
MIN_SIDE, MAX_SIDE = 256, 1920
MIN_FRAMES = 5
MAX_FPS = 60
DEFAULT_MAX_VIDEOS, DEFAULT_MAX_PIXELS, DEFAULT_MAX_FRAMES = 16, 921_600, 161
DEFAULT_MAX_TOTAL_FRAMES = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that an operator can move (settings of the same names)."""

    max_videos_per_job: int = DEFAULT_MAX_VIDEOS
    max_pixels: int = DEFAULT_MAX_PIXELS
    max_frames: int = DEFAULT_MAX_FRAMES
    max_total_frames: int = DEFAULT_MAX_TOTAL_FRAMES


def shown(value: float) -> str:
    """A number that was sent. Python writes no integer of more than 4,300 digits."""
    return f"{value}" if abs(value) < 10**20 else "a number of that size"


_INTEGERS = (int, int | None)


class Sent(BaseModel):
    """An object of a payload.

    Only the fields that are known are looked at. null is as good as absent, and 832.0 as 832.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        sent = {name: data[name] for name in cls.model_fields if data.get(name) is not None}
        for name, value in sent.items():
            if isinstance(value, float) and value.is_integer() and cls.model_fields[name].annotation in _INTEGERS:
                sent[name] = int(value)
        return sent


def _share(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"must be above 0 and below 1, not {shown(value)}")
    return value


Share = Annotated[
    float, AfterValidator(_share), Field(json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1})
]


class LoraInput(Sent):
    """One LoRA of a video request, or a pair of them: one for each expert."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": ["source"]}, {"required": ["high", "low"]}]})

    source: Source | None = Field(None, description="https URL, hub repo/file, or a file name in MODEL_CACHE_DIR/loras")
    high: Source | None = Field(None, description="In place of source, beside low: the high-noise expert's file")
    low: Source | None = Field(None, description="In place of source, beside high: the low-noise expert's file")
    scale: float = Field(1.0, ge=-100, le=100, description="How strongly it applies; the range keeps weights finite")
    expert: Literal["high", "low", "both"] | None = Field(
        None, description="From the file's name where it says high or low noise, with a warning; else both"
    )


def _within_max_frames(value: int | None, info: ValidationInfo) -> int | None:
    limits: Limits = info.context if info.context is not None else Limits()
    if value is not None and not MIN_FRAMES <= value <= limits.max_frames:
        raise ValueError(f"must be {MIN_FRAMES} to {limits.max_frames}, not {shown(value)}")
    return value


class SegmentInput(Sent):
    """One clip of a longer video. What it leaves out comes from the request around it."""

    prompt: Prompt | None = None
    num_frames: int | None = None
    duration_seconds: float | None = Field(None, gt=0, description="Instead of num_frames")
    seed: int | None = Field(None, ge=-1, le=MAX_SEED, description="The request's, and one more for each segment")
    camera_motion: CameraMotion | None = None
    loras: list[LoraInput] | None = Field(None, max_length=MAX_LORAS)
    last_image_url: Url | None = Field(None, description="The picture on which it ends")
    transition: Literal["continue", "cut"] = Field(
        "continue", description="cut: it begins afresh, from its words alone"
    )

    _frames = field_validator("num_frames")(_within_max_frames)


class VideoInput(Sent):
    """One video request as it is sent."""

    prompt: Prompt = Field(
        description="What the video shows; 1 to 4,000 characters after trimming",
        json_schema_extra={"minLength": 1, "maxLength": MAX_PROMPT_CHARACTERS},
    )
    negative_prompt: Trimmed = Field(
        OFFICIAL_NEGATIVE_PROMPT,
        description='What to avoid; "" means none',
        json_schema_extra={"maxLength": MAX_PROMPT_CHARACTERS},
    )
    reference_image_url: Url | None = Field(
        None, description="First frame: http(s) URL or data: URI; makes it image-to-video"
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
        description="Pixels; 480 where not given (5b: 704). With a picture or video: from its aspect ratio",
    )
    width: int | None = Field(
        None,
        ge=MIN_SIDE,
        le=MAX_SIDE,
        description="Pixels; 832 where not given (5b: 1280). With a picture or video: from its aspect ratio",
    )
    resolution: Resolution | None = Field(
        None, description="The area of 832x480, 1024x576, 1280x720; not beside height or width"
    )
    aspect_ratio: AspectRatio | None = Field(
        None, description="auto with a source, else 16:9, where not given; not beside height or width"
    )
    num_frames: int | None = Field(
        None,
        json_schema_extra={"maximum": DEFAULT_MAX_FRAMES, "minimum": MIN_FRAMES},
        description="81 where not given (5b: 121)",
    )
    duration_seconds: float | None = Field(
        None, gt=0, description="Instead of num_frames: the nearest 4k + 1 frames at fps"
    )
    fps: int | None = Field(
        None, ge=1, le=MAX_FPS, description="16 where not given; 24 for the 5b model. Another rate changes the speed"
    )
    target_fps: int | None = Field(
        None, ge=2, le=MAX_FPS, description="Above fps: frames are interpolated along the motion, the duration stays"
    )
    num_inference_steps: int | None = Field(None, ge=1, le=100, json_schema_extra={"default": 50})
    guidance_scale: float | None = Field(
        None, ge=1, le=20, description="High-noise expert; 1 = no guidance", json_schema_extra={"default": 5.0}
    )
    guidance_scale_2: float | None = Field(
        None, ge=1, le=20, description="Low-noise expert; guidance_scale where not given"
    )
    guidance_until: float = Field(
        1.0, ge=0, le=1, description="The share of the steps, from the first on, that are guided: fewer are faster"
    )
    flow_shift: float | None = Field(None, ge=0.5, le=25, description="The model's official value where not given")
    seed: int | None = Field(
        None, ge=-1, le=MAX_SEED, description="Drawn at random where not given, or -1; always reported"
    )
    num_outputs: int = Field(
        1, ge=1, le=MAX_OUTPUTS, description="Videos of this request, with seeds seed, seed + 1, ..."
    )
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
    preview: PreviewKind = Field(
        "off", description="Early looks at the video, in progress events: frames side by side, or animated"
    )
    preview_at: list[Share] = Field(
        default_factory=lambda: list(PREVIEW_AT),
        min_length=1,
        max_length=MAX_PREVIEWS,
        description="Shares of the steps after which a preview is made",
        json_schema_extra={"default": list(PREVIEW_AT)},
    )
    preview_only: bool = Field(
        False, description="End after the last preview, without a video; a strip if preview is off"
    )

    segments: list[SegmentInput] = Field(
        default_factory=list,
        min_length=MIN_SEGMENTS,
        max_length=MAX_SEGMENTS,
        description="The clips of one longer video, each the continuation of the one before",
    )
    continuity: Literal["last_frame", "keyframes", "svi"] = Field(
        "last_frame",
        description="keyframes: each segment ends on its last_image_url, on which the next begins; svi: each is held "
        "to the first picture by LoRAs that are on the worker",
    )
    overlap_frames: Literal[1, 5, 9] = Field(1, description="Frames of a segment that begin the next; with svi 5")
    extend_video_url: Url | None = Field(None, description="A video of yours that is continued, and begins the file")
    loop: bool = Field(False, description="The end meets the beginning")
    color_match: bool = Field(True, description="Hold each segment's colours to the frames before it")

    _frames = field_validator("num_frames")(_within_max_frames)

    @field_validator("overlap_frames", mode="before")
    @classmethod
    def _no_boolean(cls, value: object) -> object:
        # Python's true equals 1, and a Literal takes what is equal.
        if isinstance(value, bool):
            raise ValueError("must be one of 1, 5 or 9, got a boolean")
        return value


class JobInput(Sent):
    """The fields of a job that stand beside its video requests."""

    job_id: JobId | None = Field(
        None,
        description="Part of the storage key; the RunPod job id where not given",
        json_schema_extra={"pattern": JOB_ID_PATTERN},
    )
    webhook_url: Url | None = Field(None, description="http(s) URL that receives the events")
    webhook_events: list[WebhookEvent] = Field(
        default_factory=lambda: list(get_args(WebhookEvent)), max_length=MAX_WEBHOOK_EVENTS
    )


class FullInput(JobInput):
    """The whole `input` of a RunPod event, for the exported schema."""

    job_request_params: list[VideoInput] = Field(min_length=1, json_schema_extra={"maxItems": DEFAULT_MAX_VIDEOS})
