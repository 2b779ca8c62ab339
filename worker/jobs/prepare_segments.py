"""Before the GPU's turn, for a video of several segments: each of them made ready, but for what others show of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from worker.base.errors import InputInvalid, InvalidRequest, Unsupported
from worker.base.settings import Settings
from worker.engine import Engine, Video
from worker.jobs.prepare import Seen
from worker.media import inputs, lossless
from worker.media.decode_video import SourceVideo
from worker.media.formats import FORMATS
from worker.net import Opener
from worker.request import ModelSpec, VideoRequest, choose
from worker.request.payload import MAX_FPS, MIN_SIDE
from worker.request.segments import clips
from worker.request.values import Chain
from worker.weights.loras import LoraFile, LoraStore

Prepare = Callable[[VideoRequest, Sequence[VideoRequest]], Video]


def prepare_segments(
    request: VideoRequest,
    following: Sequence[VideoRequest],
    folder: Path,
    *,
    engine: Engine,
    one: Prepare,
    opener: Opener,
    loras: LoraStore,
    stop: threading.Event,
    settings: Settings,
    seen: Seen | None = None,
) -> Video:
    """The video that `request` asks for, its `segments` ready to be made one after the other.

    The pictures on which a segment begins, or the last one of a loop ends, are those of other segments: they are not in
    it yet. The frames of a video that is continued are put into `folder`, at `before(...)`, and its sound, if it has
    any that the file can hold, at `sound(...)`. `one` prepares a video of one clip. Blocks and raises as
    `prepare.prepare` does.
    """
    chain = request.chain
    assert chain is not None
    svi = _svi(request, loras) if chain.continuity == "svi" else None
    if chain.overlap_frames > 1 and request.model == "5b":
        raise Unsupported("5b begins a clip with one picture: send 1", path=request.at("overlap_frames"))
    for clip in clips(request):
        spec = choose(engine.catalogue, clip)  # refuses before anything is fetched
    if chain.extend_video_url is not None:
        path = request.at("extend_video_url")
        with inputs.fetch_video(chain.extend_video_url, opener=opener, path=path, stop=stop, seen=seen) as source:
            request = _extending(source, request, chain, spec, folder, stop, settings)
    wanted = clips(request)
    segments: list[Video] = []
    for number, clip in enumerate(wanted):
        if segments:
            first = segments[0].request
            clip = replace(clip, width=first.width, height=first.height)
            if chain.continuity == "keyframes":
                clip = replace(clip, reference_image_url=chain.segments[number - 1].last_image_url)
        made = one(clip, (*wanted[number + 1 :], *following))
        segments.append(replace(made, svi=svi if clip.svi else None))
    first = segments[0].request
    warnings = dict.fromkeys(
        line
        for number, segment in enumerate(segments)
        for line in segment.request.warnings
        # With keyframes the first picture of each further segment is the last of the one before, which was named there.
        if number == 0 or not line.startswith(f"{segment.request.at('reference_image_url')}:")
    )
    whole = replace(request, width=first.width, height=first.height, warnings=tuple(warnings))
    return replace(segments[0], request=whole, segments=tuple(segments))


def _svi(request: VideoRequest, loras: LoraStore) -> tuple[LoraFile, LoraFile]:
    path = request.at("continuity")
    if request.model == "5b":
        raise Unsupported("svi is for a14b: send last_frame or keyframes", path=path)
    return loras.svi(path=path)


def before(folder: Path, request: VideoRequest) -> Path:
    """Where the frames of the video that `request` continues are."""
    return folder / f"{request.index}-before.frames"


def sound(folder: Path, request: VideoRequest) -> Path:
    """Where the sound of the video that `request` continues is, if there is any."""
    return folder / f"{request.index}-before.mka"


def _extending(
    source: SourceVideo,
    request: VideoRequest,
    chain: Chain,
    spec: ModelSpec,
    folder: Path,
    stop: threading.Event,
    settings: Settings,
) -> VideoRequest:
    """The request with the size and rate of the video that it continues, whose frames are copied into `folder`."""
    width, height = (side // spec.size_stride * spec.size_stride for side in source.size)
    if min(width, height) < MIN_SIDE or width * height > settings.max_pixels:
        message = f"is {source.size[0]}x{source.size[1]}: send one of sides from {MIN_SIDE} and at most "
        raise InvalidRequest(f"{message}{settings.max_pixels} pixels a frame", path=source.path)
    fps = round(source.fps)
    if not 1 <= fps <= MAX_FPS:
        raise InputInvalid(
            f"the video has {source.fps:g} frames a second: send one of 1 to {MAX_FPS}", path=source.path
        )
    most = settings.max_total_frames - chain.num_frames
    frames = source.own_frames(width=width, height=height, max_frames=most + 1, stop=stop)
    count = lossless.write(frames, before(folder, request))
    if count < chain.overlap_frames:
        message = f"the video has {count} frames: send one with at least the {chain.overlap_frames} of overlap_frames"
        raise InputInvalid(message, path=source.path)
    if count > most:
        message = f"has more than {most} frames, with which the video has more than {settings.max_total_frames}"
        raise InvalidRequest(f"{message} (MAX_TOTAL_FRAMES): send a shorter one", path=source.path)
    notes = []
    if (width, height) != source.size:
        notes.append(f"cropped from {source.size[0]}x{source.size[1]} to {width}x{height}, as the model needs")
    if fps != spec.fps:
        notes.append(f"{fps} fps is not the model's own rate of {spec.fps}: what follows moves at another speed")
    if source.has_sound and FORMATS[request.output.format].sound is None:
        notes.append(f"its sound is not kept: a {request.output.format.upper()} has none")
    elif source.has_sound:
        target = sound(folder, request)
        try:
            source.write_sound(target, seconds=count / fps, stop=stop)
        except InputInvalid as failure:
            target.unlink()
            notes.append(f"its sound is not kept: {failure.message}")
    return replace(
        request,
        width=width,
        height=height,
        fps=fps,
        chain=replace(chain, frames_before=count),
        warnings=(*request.warnings, *(f"{source.path}: {note}" for note in notes)),
    )
