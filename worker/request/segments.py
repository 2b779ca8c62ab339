"""A video of several clips: what each of them is, from `segments`, from a long duration, or behind a caller's video."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from worker.request.catalogue import Mode, ModelSpec
from worker.request.lora_experts import loras_of
from worker.request.payload import MAX_SEED, MAX_SEGMENTS, Limits, SegmentInput, VideoInput
from worker.request.problems import Problems, join
from worker.request.values import Chain, Segment, VideoRequest

# Frames of a segment, from its `num_frames` or `duration_seconds`; what cannot be is refused at its place.
FramesOf = Callable[[SegmentInput, Problems], int]
# SVI hands over one latent frame, the last four frames of a clip. In the next clip it is behind the first latent frame,
# which is one frame: that one is shown already too.
SVI_OVERLAP = 5


def clips(request: VideoRequest) -> tuple[VideoRequest, ...]:
    """The requests of a chain's segments, in their order; the pictures that come from other segments are not in them.

    Without a seed of its own a segment has the request's and its number more.
    """
    if (chain := request.chain) is None:
        return (request,)
    return tuple(
        replace(
            request,
            chain=None,
            path=segment.path,
            around=request.path,
            mode=(mode := _mode(request, chain, number)),
            svi=chain.continuity == "svi" and mode != "text_to_video",
            prompt=segment.prompt,
            num_frames=segment.num_frames,
            seed=later_seed(request.seed, number) if segment.seed is None else segment.seed,
            camera_motion=segment.camera_motion,
            loras=segment.loras,
            reference_image_url=None if number or chain.extend_video_url else request.reference_image_url,
            last_image_url=segment.last_image_url,
        )
        for number, segment in enumerate(chain.segments)
    )


def later_seed(seed: int, number: int) -> int:
    """The seed that is `number` more; after the last one comes the first."""
    return (seed + number) % (MAX_SEED + 1)


def with_later_seeds(chain: Chain, number: int) -> Chain:
    """The chain of a further output, whose segments' own seeds are `number` more."""
    return replace(
        chain,
        segments=tuple(
            each if each.seed is None else replace(each, seed=later_seed(each.seed, number)) for each in chain.segments
        ),
    )


def _mode(request: VideoRequest, chain: Chain, number: int) -> Mode:
    if not chain.continues(number) and (number > 0 or request.reference_image_url is None):
        return "text_to_video"
    return "first_last_frame" if chain.ends_on_picture(number) else "image_to_video"


def chain_of(
    video: VideoInput, frames: int, spec: ModelSpec, limits: Limits, frames_of: FramesOf, problems: Problems
) -> Chain | None:
    """The segments of a request, None for a video of one clip; `frames` is how long the request itself is."""
    most = (limits.max_frames - 1) // spec.frame_stride * spec.frame_stride + 1
    if not video.segments and frames <= most and video.extend_video_url is None:
        for field in ("continuity", "overlap_frames"):
            if getattr(video, field) != VideoInput.model_fields[field].default:
                problems.warn(field, "ignored, it is for a video of several segments")
        return None
    if video.reference_video_url is not None:
        field = "segments" if video.segments else "extend_video_url" if video.extend_video_url else "duration_seconds"
        problems.refuse(field, "cannot stand beside reference_video_url, which makes one clip")
    overlap = SVI_OVERLAP if video.continuity == "svi" else video.overlap_frames
    if video.segments:
        segments = _listed(video, frames_of, spec, problems)
    else:
        segments = _divided(video, frames, most, overlap, spec, problems)
    chain = Chain(
        segments=segments,
        continuity=video.continuity,
        overlap_frames=overlap,
        extend_video_url=video.extend_video_url,
        loop=video.loop,
        color_match=video.color_match,
    )
    _conflicts(video, chain, limits, problems)
    return chain


def _listed(video: VideoInput, frames_of: FramesOf, spec: ModelSpec, problems: Problems) -> tuple[Segment, ...]:
    segments = []
    for number, sent in enumerate(video.segments):
        own = _at(problems, f"{join(problems.path, 'segments')}[{number}]")
        length, place = sent, own
        if sent.num_frames is None and sent.duration_seconds is None:
            length, place = SegmentInput(num_frames=video.num_frames, duration_seconds=video.duration_seconds), problems
        segments.append(
            Segment(
                path=own.path,
                prompt=video.prompt if sent.prompt is None else sent.prompt,
                num_frames=frames_of(length, place),
                seed=None if sent.seed == -1 else sent.seed,
                camera_motion=video.camera_motion if sent.camera_motion is None else sent.camera_motion,
                loras=loras_of(
                    video.loras if sent.loras is None else sent.loras, spec, problems if sent.loras is None else own
                ),
                last_image_url=sent.last_image_url,
                cut=sent.transition == "cut",
            )
        )
    return tuple(segments)


def _divided(
    video: VideoInput, frames: int, most: int, overlap: int, spec: ModelSpec, problems: Problems
) -> tuple[Segment, ...]:
    """Segments of even length, none longer than the model's usual clip where MAX_SEGMENTS of those are enough."""
    stride = spec.frame_stride
    usual = min(spec.defaults.num_frames, most)
    count = 1 if frames <= most else min(MAX_SEGMENTS, max(2, -(-(frames - overlap) // max(stride, usual - overlap))))
    steps, longer = divmod((frames - overlap) // stride, count)
    if overlap + stride * (steps + (longer > 0)) > most:
        held = overlap + count * (most - overlap)
        problems.refuse("duration_seconds", f"makes {frames} frames; {count} segments of {most} hold {held}")
    loras = loras_of(video.loras, spec, problems)
    return tuple(
        Segment(
            path=problems.path,
            prompt=video.prompt,
            num_frames=overlap + stride * (steps + (number < longer)),
            seed=None,
            camera_motion=video.camera_motion,
            loras=loras,
            last_image_url=video.last_image_url if number == count - 1 else None,
            cut=False,
        )
        for number in range(count)
    )


def _conflicts(video: VideoInput, chain: Chain, limits: Limits, problems: Problems) -> None:
    if chain.overlap_frames > 1 and chain.continuity == "keyframes":
        problems.refuse("overlap_frames", "must be 1 with continuity keyframes: a segment begins on one picture")
    if chain.continuity == "svi" and video.overlap_frames not in (1, SVI_OVERLAP):
        problems.refuse("overlap_frames", f"must be {SVI_OVERLAP} with continuity svi, or left out")
    seeds = [segment.seed for segment in chain.segments if segment.seed is not None]
    if chain.continuity == "svi" and len(set(seeds)) < len(seeds):
        problems.warn("segments", "some have the same seed: with continuity svi errors of the same noise add up")
    if chain.continuity == "svi" and chain.loop:
        problems.refuse("loop", "cannot stand beside continuity svi, by which no segment ends on a picture")
    if video.last_image_url is not None and (video.segments or chain.extend_video_url is not None):
        beside = "segments" if video.segments else "extend_video_url"
        problems.refuse("last_image_url", f"cannot stand beside {beside}; send it in a segment")
    for field in ("reference_image_url", "duration_seconds", "target_fps"):
        if chain.extend_video_url is not None and getattr(video, field) is not None:
            remedy = "send num_frames, its rate is not known yet" if field == "duration_seconds" else "leave it out"
            problems.refuse(field, f"cannot stand beside extend_video_url: {remedy}")
    for field in ("width", "height", "resolution", "aspect_ratio", "fps"):
        if chain.extend_video_url is not None and getattr(video, field) is not None:
            problems.warn(field, "ignored, size and rate are those of extend_video_url")
    if chain.continuity == "keyframes" and video.reference_image_url is None and chain.extend_video_url is None:
        problems.refuse("reference_image_url", "is missing: with continuity keyframes it is the first frame")
    for number in range(len(chain.segments)):
        _conflicts_of(number, video, chain, problems)
    if chain.num_frames > limits.max_total_frames:
        field = "segments" if video.segments else "num_frames" if video.duration_seconds is None else "duration_seconds"
        problems.refuse(
            field, f"makes {chain.num_frames} frames; at most {limits.max_total_frames} are made (MAX_TOTAL_FRAMES)"
        )


def _conflicts_of(number: int, video: VideoInput, chain: Chain, problems: Problems) -> None:
    segment = chain.segments[number]
    own = _at(problems, segment.path)
    if segment.path in problems.found.paths:
        return
    first = number == 0 and chain.extend_video_url is None
    lacks_picture = video.reference_image_url is None and problems.none_in("reference_image_url")
    if segment.cut and first:
        own.warn("transition", "ignored, nothing is before the first segment")
    elif segment.cut and (chain.continuity == "keyframes" or chain.ends_on_picture(number)):
        own.refuse("transition", "cut begins without a picture, so it cannot end on one: send continue")
    elif first and chain.ends_on_picture(number) and lacks_picture:
        own.refuse("last_image_url", "needs reference_image_url in the request, for the first frame")
    if chain.loop and number == len(chain.segments) - 1 and segment.last_image_url is not None:
        own.refuse("last_image_url", "cannot stand beside loop, by which the video ends on its first frame")
    elif chain.continuity == "svi" and segment.last_image_url is not None:
        own.refuse("last_image_url", "cannot stand beside continuity svi, by which no segment ends on a picture")
    elif chain.continuity == "keyframes" and not chain.ends_on_picture(number):
        if video.segments:
            own.refuse("last_image_url", "is missing: with continuity keyframes each segment ends on one")
        else:
            own.refuse("continuity", "keyframes needs segments, each with its own last_image_url")
    if segment.num_frames <= chain.overlap_frames:
        own.refuse("num_frames", f"must be more than the {chain.overlap_frames} of overlap_frames")


def _at(problems: Problems, path: str) -> Problems:
    """For a segment, whose warnings are the video's."""
    own = problems.at(path)
    own.warnings = problems.warnings
    return own
