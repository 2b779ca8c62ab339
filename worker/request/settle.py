"""What one video request asks for, with every default, preset, limit and correction of the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from worker.request.catalogue import Mode, ModelSpec, closest
from worker.request.lora_experts import loras_of
from worker.request.payload import (
    MAX_FPS,
    MIN_FRAMES,
    Limits,
    OutputCodec,
    OutputFormat,
    SegmentInput,
    VideoInput,
)
from worker.request.problems import Problems
from worker.request.segments import chain_of, clips, later_seed, with_later_seeds
from worker.request.sizing import Size, size_of
from worker.request.values import Output, Previews, VideoRequest

DEFAULT_STRENGTH = 0.8
# 16 fps to 60 of the longest clip are 604; a file of more takes minutes to interpolate and to write.
MAX_INTERPOLATED_FRAMES = 1_000
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


def settle(
    video: VideoInput,
    first_index: int,
    catalogue: Sequence[ModelSpec],
    limits: Limits,
    new_seed: Callable[[], int],
    problems: Problems,
) -> list[VideoRequest]:
    """The `num_outputs` videos of a request, the first of them with `first_index`. What cannot be is refused."""
    _conflicts(video, problems)
    mode = _mode(video)
    spec = closest(catalogue, video.model, mode)
    steps, guidance, guidance_2 = _guidance(video, spec, problems)
    fps = _fps(video, spec, problems)
    frames = _frames(video, spec, fps, limits, problems)
    chain = chain_of(video, frames, spec, limits, lambda sent, own: _frames(sent, spec, fps, limits, own), problems)
    total = frames if chain is None else chain.num_frames
    last_image_url = video.last_image_url
    if chain is not None:
        frames = max(segment.num_frames for segment in chain.segments)
        last_image_url = None
    elif video.loop:
        mode, last_image_url = _looping(video, mode, problems)
    size = size_of(video, spec, limits, problems)
    _beyond_training(spec, catalogue, size, frames, problems)
    first = VideoRequest(
        index=first_index,
        path=problems.path,
        mode=mode,
        model=video.model,
        prompt=video.prompt,
        negative_prompt=video.negative_prompt,
        reference_image_url=video.reference_image_url,
        last_image_url=last_image_url,
        reference_video_url=video.reference_video_url,
        strength=DEFAULT_STRENGTH if video.strength is None else float(video.strength),
        height=size.height,
        width=size.width,
        area=size.area,
        num_frames=frames,
        fps=fps,
        num_inference_steps=steps,
        guidance_scale=float(guidance),
        guidance_scale_2=float(guidance_2),
        guidance_until=float(video.guidance_until),
        flow_shift=None if video.flow_shift is None else float(video.flow_shift),
        seed=new_seed() if video.seed in (None, -1) else video.seed,
        camera_motion=video.camera_motion,
        enhance_prompt=video.enhance_prompt,
        prompt_expansion=video.prompt_expansion,
        quality_preset=video.quality_preset,
        turbo_variant=video.turbo_variant,
        step_cache=video.step_cache,
        loras=loras_of(video.loras, spec, problems),
        output=_output(video, fps, total, problems),
        preview=_previews(video, chain is not None, problems),
        chain=chain,
        warnings=tuple(dict.fromkeys(problems.warnings)),
    )
    return _outputs(replace(first, mode=clips(first)[0].mode), video.num_outputs)


def _outputs(first: VideoRequest, count: int) -> list[VideoRequest]:
    """The videos of one request, which differ in their seeds."""
    return [
        replace(
            first,
            index=first.index + number,
            seed=later_seed(first.seed, number),
            chain=None if first.chain is None else with_later_seeds(first.chain, number),
        )
        for number in range(count)
    ]


def _fps(video: VideoInput, spec: ModelSpec, problems: Problems) -> int:
    fps = spec.fps if video.fps is None else video.fps
    if fps != spec.fps and video.extend_video_url is None:
        problems.warn(
            "fps", f"{fps} is not the model's own rate of {spec.fps}: motion has another speed; target_fps leaves it"
        )
    return fps


def _conflicts(video: VideoInput, problems: Problems) -> None:
    if video.strength is not None and video.reference_video_url is None:
        problems.warn("strength", "ignored, it is for reference_video_url")
    image_given = video.reference_image_url is not None
    in_a_segment = bool(video.segments) or video.extend_video_url is not None  # `chain_of` refuses it
    is_last_alone = video.last_image_url is not None and not image_given and not in_a_segment
    if is_last_alone and video.reference_video_url is not None:
        problems.refuse("last_image_url", "cannot stand together with reference_video_url; send one of the two")
    elif is_last_alone and problems.none_in("reference_image_url"):
        problems.refuse("last_image_url", "needs reference_image_url beside it, for the first frame")
    if video.reference_video_url is not None and image_given:
        problems.refuse("reference_video_url", "cannot stand together with reference_image_url; send one of the two")
    if video.turbo_variant == "hybrid" and video.quality_preset != "turbo" and problems.none_in("quality_preset"):
        problems.refuse("turbo_variant", "needs quality_preset turbo beside it")
    if video.upload_url is not None and video.num_outputs > 1:
        problems.refuse("upload_url", "takes one video; send a video request with an upload_url for each of them")


def _mode(video: VideoInput) -> Mode:
    if video.reference_video_url is not None:
        return "video_to_video"
    if video.reference_image_url is None:
        return "text_to_video" if video.extend_video_url is None else "image_to_video"
    return "image_to_video" if video.last_image_url is None else "first_last_frame"


def _looping(video: VideoInput, mode: Mode, problems: Problems) -> tuple[Mode, str | None]:
    """Mode and last picture of one clip that ends on the picture on which it begins."""
    if mode != "image_to_video":
        if problems.none_in("segments", "reference_image_url"):
            problems.refuse("loop", "needs segments, or one clip with reference_image_url and without last_image_url")
        return mode, video.last_image_url
    return "first_last_frame", video.reference_image_url


def _guidance(video: VideoInput, spec: ModelSpec, problems: Problems) -> tuple[int, float, float]:
    """(num_inference_steps, guidance_scale, guidance_scale_2); a preset sets all three."""
    given = (video.num_inference_steps, video.guidance_scale, video.guidance_scale_2)
    if video.quality_preset is None:
        steps = spec.defaults.num_inference_steps if given[0] is None else given[0]
        guidance = spec.defaults.guidance_scale if given[1] is None else given[1]
        return steps, guidance, guidance if given[2] is None else given[2]
    steps, guidance = PRESETS[video.quality_preset]
    settled = HYBRID if video.turbo_variant == "hybrid" else (steps, guidance, guidance)
    for field, sent, value in zip(
        ("num_inference_steps", "guidance_scale", "guidance_scale_2"), given, settled, strict=True
    ):
        if sent is not None and sent != value:
            problems.warn(field, f"{value:g} by quality_preset {video.quality_preset}, not {sent:g}")
    return settled


def _frames(video: VideoInput | SegmentInput, spec: ModelSpec, fps: int, limits: Limits, problems: Problems) -> int:
    stride = spec.frame_stride
    most = (limits.max_frames - 1) // stride * stride + 1
    if video.duration_seconds is None:
        given = min(spec.defaults.num_frames, most) if video.num_frames is None else video.num_frames
        frames = (given - 1) // stride * stride + 1
        problems.lowered("num_frames", given, frames, "the model makes 4k + 1 frames")
        return frames
    if video.num_frames is not None:
        problems.refuse("duration_seconds", "cannot stand beside num_frames; send one of the two")
    wanted = video.duration_seconds * fps
    frames = round((min(wanted, 1e9) - 1) / stride) * stride + 1
    # Only a whole video can be longer than one clip; within one, a limit that is no 4k + 1 is lowered to one.
    whole = isinstance(video, VideoInput) and not video.segments and video.reference_video_url is None
    in_one = not whole or wanted <= limits.max_frames
    longest = most if in_one else (max(most, limits.max_total_frames) - 1) // stride * stride + 1
    if (wanted > limits.max_frames and frames > longest) or frames < MIN_FRAMES:
        if problems.none_in("fps"):
            problems.refuse(
                "duration_seconds",
                f"must be {MIN_FRAMES / fps:.2f} to {longest / fps:.2f}, not {video.duration_seconds:g}: "
                f"one {'clip' if in_one else 'video'} has {MIN_FRAMES} to {longest} frames, at {fps} fps",
            )
        return most
    return min(frames, longest)


def _beyond_training(
    spec: ModelSpec, catalogue: Sequence[ModelSpec], size: Size, frames: int, problems: Problems
) -> None:
    """Warn of what the demo model draws with random weights."""
    if (best := next((each.extent for each in catalogue if each.extent is not None), None)) is None:
        return
    shown = "this is drawn by random weights, and shows moving colour"
    pixels = size.area if size.width is None or size.height is None else size.width * size.height
    if spec.extent is None:
        problems.warn("model", f"the demo model has trained weights for a14b alone: {shown}")
    elif pixels > best.most_pixels:
        problems.warn("width", f"the demo model was trained for 256x256, up to {best.most_pixels} pixels: {shown}")
    elif not best.least_frames <= frames <= best.most_frames:
        least, most = best.least_frames, best.most_frames
        problems.warn("num_frames", f"the demo model was trained for 17 frames, {least} to {most}: {shown}")


def _output(video: VideoInput, fps: int, frames: int, problems: Problems) -> Output:
    """The files that are asked for; refuses a codec that the format cannot hold and a rate that adds no frames."""
    codecs = CODECS[video.output_format]
    codec = codecs[0] if video.output_codec is None else video.output_codec
    if codec not in codecs and problems.none_in("output_format"):
        choice = ", ".join(codecs) if codecs[0] != video.output_format else "none"
        problems.refuse("output_codec", f"{codec} does not go with output_format {video.output_format}; send {choice}")
    if video.target_fps is not None and problems.none_in("fps"):
        interpolated = frames * video.target_fps // fps
        if video.target_fps <= fps:
            problems.refuse("target_fps", f"must be above fps, which is {fps}, to {MAX_FPS}, not {video.target_fps}")
        elif interpolated > MAX_INTERPOLATED_FRAMES and problems.none_in("num_frames", "duration_seconds"):
            problems.refuse("target_fps", f"makes {interpolated} frames; at most {MAX_INTERPOLATED_FRAMES} are made")
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


def _previews(video: VideoInput, in_segments: bool, problems: Problems) -> Previews:
    """When and how previews are made; warns of what has no effect."""
    kind = "strip" if video.preview_only and video.preview == "off" else video.preview
    if kind == "off" and "preview_at" in video.model_fields_set:
        problems.warn("preview_at", "ignored, it is for preview")
    if video.preview_only and in_segments:
        problems.refuse("preview_only", "is for one clip: ask for previews of the first segment by itself")
    if video.preview_only:
        for field in ("target_fps", "frames_zip", "response_format", "upload_url"):
            if field in video.model_fields_set:
                problems.warn(field, "ignored, preview_only makes no video")
    return Previews(kind, tuple(sorted(set(video.preview_at))), video.preview_only)
