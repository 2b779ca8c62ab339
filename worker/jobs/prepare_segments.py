"""Before the GPU's turn, for a video of several segments: each of them made ready, but for what others show of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from worker.base.errors import Unsupported
from worker.engine import Engine, Video
from worker.request import VideoRequest, choose
from worker.request.segments import clips

Prepare = Callable[[VideoRequest, Sequence[VideoRequest]], Video]


def prepare_segments(
    request: VideoRequest, following: Sequence[VideoRequest], *, engine: Engine, one: Prepare
) -> Video:
    """The video that `request` asks for, its `segments` ready to be made one after the other.

    The pictures on which a segment begins, or the last one of a loop ends, are those of other segments: they are not in
    it yet. `one` prepares a video of one clip. Blocks and raises as `prepare.prepare` does.
    """
    chain = request.chain
    assert chain is not None
    if chain.continuity == "svi":
        raise Unsupported(
            "svi needs LoRAs that this worker does not have: send last_frame or keyframes",
            path=request.at("continuity"),
        )
    if chain.overlap_frames > 1:
        raise Unsupported("this worker serves 1: leave it out", path=request.at("overlap_frames"))
    wanted = clips(request)
    for clip in wanted:
        choose(engine.catalogue, clip)  # refuses before anything is fetched
    segments: list[Video] = []
    for number, clip in enumerate(wanted):
        if segments:
            first = segments[0].request
            clip = replace(clip, width=first.width, height=first.height)
        if chain.continuity == "keyframes" and chain.continues(number):
            clip = replace(clip, reference_image_url=chain.segments[number - 1].last_image_url)
        segments.append(one(clip, (*wanted[number + 1 :], *following)))
    first = segments[0].request
    warnings = dict.fromkeys(line for segment in segments for line in segment.request.warnings)
    whole = replace(request, width=first.width, height=first.height, warnings=tuple(warnings))
    return replace(segments[0], request=whole, segments=tuple(segments))
