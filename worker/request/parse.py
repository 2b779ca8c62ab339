"""A payload becomes a `Job` of `VideoRequest`s: every default, preset, limit and correction of the contract.

All problems of a payload are reported at once, each with its dotted path. Importing this module loads neither torch nor
diffusers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.base.errors import InvalidRequest, Problem
from worker.request.catalogue import Mode, by_name
from worker.request.complaints import read
from worker.request.names import unknown_fields
from worker.request.payload import (
    MAX_LORAS,
    MAX_SEED,
    JobInput,
    Limits,
    LoraInput,
    OutputCodec,
    OutputFormat,
    VideoInput,
)
from worker.request.problems import Problems, join
from worker.request.values import DEFAULT_HEIGHT, DEFAULT_WIDTH, Job, Lora, Output, VideoRequest

DEFAULT_STRENGTH = 0.8
DEFAULT_LIMITS = Limits()
MAX_NAMED_PROBLEMS = 100
# The codecs of each format, the default first. GIF and WebP are codecs of their own.
CODECS: Mapping[OutputFormat, tuple[OutputCodec, ...]] = {
    "mp4": ("h264", "hevc", "av1"),
    "webm": ("vp9", "av1"),
    "gif": ("gif",),
    "webp": ("webp",),
}
# What a preset sets: (num_inference_steps, guidance_scale). `turbo` is the distilled schedule, without guidance.
PRESETS: Mapping[str, tuple[int, float]] = {
    "draft": (30, 4.0),
    "standard": (50, 5.0),
    "high": (80, 5.5),
    "ultra": (100, 6.0),
    "turbo": (4, 1.0),
}
# `turbo` with `turbo_variant: hybrid`: the high-noise expert's share of this many steps, guided, and then two distilled
# steps without guidance: (num_inference_steps, guidance_scale, guidance_scale_2).
HYBRID = (20, 4.0, 1.0)


def draw_seed() -> int:
    return secrets.randbelow(MAX_SEED + 1)


def parse(
    payload: object, *, default_job_id: str, limits: Limits = DEFAULT_LIMITS, new_seed: Callable[[], int] = draw_seed
) -> Job:
    """Read the `input` of a RunPod event.

    `default_job_id` is RunPod's id of the job, used where the payload names none. Raises InvalidRequest, which names
    every problem of the payload (up to MAX_NAMED_PROBLEMS) with its path and its remedy.
    """
    if not isinstance(payload, Mapping):
        raise InvalidRequest("must be an object with job_request_params (or prompt)", path="input")
    problems = Problems()
    job = read(JobInput, payload, limits, problems)
    flat = "job_request_params" not in payload and "prompt" in payload
    known = {*JobInput.model_fields, "job_request_params"}
    if "job_request_params" not in payload:
        known.update(VideoInput.model_fields)
    unknown_fields(payload, known, problems)
    videos: list[VideoRequest] = []
    for path, item in _items(payload, flat, limits, problems):
        own = problems.at(path)
        if not flat:
            unknown_fields(item, set(VideoInput.model_fields), own)
        _look_into_loras(item, own)
        video = read(VideoInput, item, limits, own)
        _conflicts(item, own)
        if video is not None:
            videos.append(_settle(video, len(videos), limits, new_seed, own))
    if problems.found or job is None:
        raise InvalidRequest.of(_named(problems.found))
    return Job(
        job_id=job.job_id if job.job_id is not None else default_job_id,
        webhook_url=job.webhook_url,
        webhook_events=frozenset(job.webhook_events),
        videos=tuple(videos),
    )


def _items(
    payload: Mapping[str, object], flat: bool, limits: Limits, problems: Problems
) -> Sequence[tuple[str, Mapping[str, Any]]]:
    if flat:
        return [("", payload)]
    entries = payload.get("job_request_params")
    path = "job_request_params"
    if entries is None:
        problems.refuse(path, "is missing: send a list of video requests, each with a prompt")
        return []
    if not isinstance(entries, list) or not entries:
        problems.refuse(path, "must be a list of 1 or more video requests")
        return []
    if len(entries) > limits.max_videos_per_job:
        problems.refuse(path, f"has {len(entries)} video requests; send at most {limits.max_videos_per_job} in one job")
        return []
    read: list[tuple[str, Mapping[str, Any]]] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, Mapping):
            read.append((f"{path}[{index}]", entry))
        else:
            problems.refuse(f"{path}[{index}]", "must be an object with a prompt")
    return read


def _named(problems: list[Problem]) -> list[Problem]:
    if len(problems) <= MAX_NAMED_PROBLEMS:
        return problems
    return [
        *problems[:MAX_NAMED_PROBLEMS],
        Problem(None, f"and {len(problems) - MAX_NAMED_PROBLEMS} more problems"),
    ]


def _look_into_loras(item: Mapping[str, Any], problems: Problems) -> None:
    """Unknown fields of the LoRAs, whose warnings are the video's."""
    loras = item.get("loras")
    for index, lora in enumerate(loras[:MAX_LORAS] if isinstance(loras, list) else ()):
        if isinstance(lora, Mapping):
            place = problems.at(f"{join(problems.path, 'loras')}[{index}]")
            unknown_fields(lora, set(LoraInput.model_fields), place)
            problems.warnings = place.warnings


def _conflicts(item: Mapping[str, Any], problems: Problems) -> None:
    image_given = item.get("reference_image_url") is not None
    if item.get("last_image_url") is not None and not image_given:
        problems.refuse("last_image_url", "needs reference_image_url beside it, for the first frame")
    if item.get("reference_video_url") is not None and image_given:
        problems.refuse("reference_video_url", "cannot stand together with reference_image_url; send one of the two")
    if item.get("turbo_variant") == "hybrid" and item.get("quality_preset") != "turbo":
        problems.refuse("turbo_variant", "needs quality_preset turbo beside it")


def _mode(video: VideoInput) -> Mode:
    if video.reference_video_url is not None:
        return "video_to_video"
    if video.reference_image_url is None:
        return "text_to_video"
    return "image_to_video" if video.last_image_url is None else "first_last_frame"


def _settle(
    video: VideoInput, index: int, limits: Limits, new_seed: Callable[[], int], problems: Problems
) -> VideoRequest:
    """Apply presets, defaults and corrections, in this order."""
    spec = by_name(video.model)
    steps, guidance, guidance_2 = _guidance(video)
    frames = (video.num_frames - 1) // spec.frame_stride * spec.frame_stride + 1
    problems.lowered("num_frames", video.num_frames, frames, "the model makes 4k + 1 frames")
    width, height = _size(video, spec.size_stride, problems)
    if width is not None and height is not None and width * height > limits.max_pixels:
        problems.refuse("width", f"width x height is {width * height}; at most {limits.max_pixels} are allowed")
    if video.strength is not None and video.reference_video_url is None:
        problems.warn(join(problems.path, "strength"), "ignored, it is for reference_video_url")
    return VideoRequest(
        index=index,
        path=problems.path,
        mode=_mode(video),
        model=video.model,
        prompt=video.prompt,
        negative_prompt=video.negative_prompt.strip(),
        reference_image_url=video.reference_image_url,
        last_image_url=video.last_image_url,
        reference_video_url=video.reference_video_url,
        strength=DEFAULT_STRENGTH if video.strength is None else float(video.strength),
        height=height,
        width=width,
        num_frames=frames,
        fps=spec.fps if video.fps is None else video.fps,
        num_inference_steps=steps,
        guidance_scale=float(guidance),
        guidance_scale_2=float(guidance_2),
        flow_shift=None if video.flow_shift is None else float(video.flow_shift),
        seed=new_seed() if video.seed is None else video.seed,
        camera_motion=video.camera_motion,
        enhance_prompt=video.enhance_prompt,
        quality_preset=video.quality_preset,
        turbo_variant=video.turbo_variant,
        step_cache=video.step_cache,
        loras=tuple(Lora(lora.source, float(lora.scale), lora.expert) for lora in video.loras),
        warnings=tuple(problems.warnings),
        prompt_expansion=video.prompt_expansion,
        output=_output(video, problems),
    )


def _output(video: VideoInput, problems: Problems) -> Output:
    """The files that are asked for; refuses a codec that the format cannot hold."""
    codecs = CODECS[video.output_format]
    codec = codecs[0] if video.output_codec is None else video.output_codec
    if codec not in codecs:
        choice = ", ".join(codecs) if codecs[0] != video.output_format else "none"
        problems.refuse("output_codec", f"{codec} does not go with output_format {video.output_format}; send {choice}")
    return Output(
        format=video.output_format,
        codec=codec,
        quality=video.video_quality,
        target_fps=video.target_fps,
        frames_zip=video.frames_zip,
        thumbnail=video.thumbnail,
        inline=video.response_format == "base64",
        upload_url=video.upload_url,
    )


def _guidance(video: VideoInput) -> tuple[int, float, float]:
    """(num_inference_steps, guidance_scale, guidance_scale_2); a preset sets all three."""
    if video.turbo_variant == "hybrid":
        return HYBRID
    if video.quality_preset is not None:
        steps, guidance = PRESETS[video.quality_preset]
        return steps, guidance, guidance
    second = video.guidance_scale if video.guidance_scale_2 is None else video.guidance_scale_2
    return video.num_inference_steps, video.guidance_scale, second


def _size(video: VideoInput, stride: int, problems: Problems) -> tuple[int | None, int | None]:
    """Width and height, both None where the reference image decides."""
    if video.width is None and video.height is None and video.reference_image_url is not None:
        return None, None
    sides: list[int] = []
    for field, given, default in (("width", video.width, DEFAULT_WIDTH), ("height", video.height, DEFAULT_HEIGHT)):
        side = default if given is None else given
        sides.append(side // stride * stride)
        problems.lowered(field, side, sides[-1], f"a multiple of {stride}")
    return sides[0], sides[1]
