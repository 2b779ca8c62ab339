"""A job that can start, and its videos: the values that every room below `jobs` reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from worker.request.catalogue import Mode, ModelName
from worker.request.payload import (
    PREVIEW_AT,
    CameraMotion,
    OutputCodec,
    OutputFormat,
    PreviewKind,
    QualityPreset,
    SegmentInput,
    StepCacheMode,
    TurboVariant,
    VideoQuality,
    WebhookEvent,
)


@dataclass(frozen=True, slots=True)
class Lora:
    """`field` is the place of its source in the request, such as `loras[0].source`."""

    source: str
    scale: float
    expert: Literal["high", "low", "both"]
    field: str = "loras"


@dataclass(frozen=True, slots=True)
class Output:
    """The files of a video, and how they reach the caller.

    `codec` is one that `format` can hold. `target_fps` is the rate to which frames are interpolated, None for none.
    `upload_url` is the caller's own presigned address, None for the worker's storage; `inline`: the file is in the
    answer.
    """

    format: OutputFormat = "mp4"
    codec: OutputCodec = "h264"
    quality: VideoQuality = "high"
    target_fps: int | None = None
    frames_zip: bool = False
    thumbnail: bool = True
    inline: bool = False
    upload_url: str | None = None


@dataclass(frozen=True, slots=True)
class Previews:
    """Early looks at a video, after the shares `at` of its steps, which ascend. `only`: no video follows them."""

    kind: PreviewKind = "off"
    at: tuple[float, ...] = PREVIEW_AT
    only: bool = False

    def steps(self, of: int) -> tuple[int, ...]:
        """After how many of `of` steps a preview is made: 1 to `of`, ascending; fewer than shares where two meet."""
        return tuple(sorted({min(max(int(share * of + 0.5), 1), of) for share in self.at}))


@dataclass(frozen=True, slots=True)
class Segment:
    """One clip of a longer video. `seed` is None for the request's and its number more; `path` its place."""

    path: str
    prompt: str
    num_frames: int
    seed: int | None
    camera_motion: CameraMotion | None
    loras: tuple[Lora, ...]
    last_image_url: str | None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """The clips of a longer video, and how they are joined.

    `frames_before` are those of `extend_video_url`, once known.
    A segment that continues begins with the last `overlap_frames` of what is before it, which are shown once.
    """

    segments: tuple[Segment, ...]
    continuity: Literal["last_frame", "keyframes", "svi"] = "last_frame"
    overlap_frames: int = 1
    extend_video_url: str | None = None
    loop: bool = False
    color_match: bool = True
    frames_before: int = 0

    def continues(self, number: int) -> bool:
        """Whether the segment begins with frames that are there already."""
        return not self.segments[number].cut and (number > 0 or self.extend_video_url is not None)

    def ends_on_picture(self, number: int) -> bool:
        return self.segments[number].last_image_url is not None or (self.loop and number == len(self.segments) - 1)

    @property
    def num_frames(self) -> int:
        """Of the file."""
        shown_before = self.overlap_frames * sum(map(self.continues, range(len(self.segments))))
        return self.frames_before + sum(segment.num_frames for segment in self.segments) - shown_before


@dataclass(frozen=True, slots=True)
class VideoRequest:
    """One video with every value settled but two: a size that follows its source, and the model's own flow shift.

    `width`, `height` or both are None where the picture or video decides, which then fills `area` pixels at most;
    `flow_shift` is None where the model decides. `path` is the place of this request in the payload, such as
    `job_request_params[2]`, or "". `chain` are the segments of a longer video, of which the longest has `num_frames`;
    the request of one segment has in `around` the place of the request around it, and `svi` where the LoRAs of Stable
    Video Infinity act on it.
    """

    index: int
    path: str
    mode: Mode
    model: ModelName
    prompt: str
    negative_prompt: str
    reference_image_url: str | None
    last_image_url: str | None
    reference_video_url: str | None
    strength: float
    height: int | None
    width: int | None
    num_frames: int
    fps: int
    num_inference_steps: int
    guidance_scale: float
    guidance_scale_2: float
    flow_shift: float | None
    seed: int
    camera_motion: CameraMotion | None
    enhance_prompt: bool
    quality_preset: QualityPreset | None
    turbo_variant: TurboVariant
    step_cache: StepCacheMode
    loras: tuple[Lora, ...]
    warnings: tuple[str, ...]
    area: int = 832 * 480
    guidance_until: float = 1.0
    prompt_expansion: bool = False
    output: Output = Output()
    preview: Previews = Previews()
    chain: Chain | None = None
    around: str | None = None
    svi: bool = False

    @property
    def shows_sources(self) -> bool:
        """Whether a picture or video of the caller's goes in."""
        urls = [self.reference_image_url, self.last_image_url, self.reference_video_url]
        if self.chain is not None:
            urls += [self.chain.extend_video_url, *(segment.last_image_url for segment in self.chain.segments)]
        return any(url is not None for url in urls)

    @property
    def total_frames(self) -> int:
        """Generated frames of the file."""
        return self.num_frames if self.chain is None else self.chain.num_frames

    @property
    def is_guided(self) -> bool:
        """Whether any step is made with the negative prompt too."""
        return max(self.guidance_scale, self.guidance_scale_2) > 1 and self.guidance_until > 0

    def at(self, field: str) -> str:
        """The dotted path of one of this request's fields."""
        is_own = self.around is None or re.split(r"\W", field)[0] in SegmentInput.model_fields
        path = self.path if is_own else self.around
        return f"{path}.{field}" if path else field


@dataclass(frozen=True, slots=True)
class Job:
    """A job that can start."""

    job_id: str
    webhook_url: str | None
    webhook_events: frozenset[WebhookEvent]
    videos: tuple[VideoRequest, ...]
