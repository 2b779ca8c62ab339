"""Files in the answer itself: of whom they are, how large they may be, and what cannot be made to fit.

A file is there where its request asks for it, and where nobody could fetch it otherwise: on the platform without a
bucket, where the folder OUTPUT_DIR ends with the worker. RunPod drops an answer that is too large, without a word.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.base.errors import Unsupported
from worker.base.settings import Settings
from worker.engine import Video
from worker.media.formats import frame_rate
from worker.media.marks.marker import Marker
from worker.media.preview_file import MAX_BYTES
from worker.media.shrink import least_bytes
from worker.request import VideoRequest

# Of all files and previews of an answer together: as base64 9.4 of the 10 MB that an answer may have, but on /runsync.
ANSWER_BYTES = 7_000_000
NO_BUCKET = (
    "no bucket is configured (DIGITAL_OCEAN_*), so the file is in video_base64: video_url, thumbnail_url and "
    "frames_url lead to the worker's own disk"
)


def is_forced(request: VideoRequest, settings: Settings) -> bool:
    """Whether the answer is the only way to the file."""
    return settings.lacks_bucket and request.output.upload_url is None


def limits(videos: Sequence[VideoRequest], settings: Settings) -> Mapping[int, int]:
    """How many bytes the file of each video in the answer may have, by the index of those that are there."""
    inline = [
        video.index
        for video in videos
        if not video.preview.only and (video.output.inline or is_forced(video, settings))
    ]
    answer_bytes = max(ANSWER_BYTES, settings.inline_max_bytes)  # larger where the operator knows that /runsync is used
    if settings.lacks_bucket:
        answer_bytes -= sum(video.preview.kind != "off" for video in videos) * MAX_BYTES
    return {index: min(settings.inline_max_bytes, answer_bytes // len(inline)) for index in inline}


def before_marks(limits: Mapping[int, int], video: Video, marker: Marker) -> int | None:
    """How many bytes the file may have before it is marked; None where it is not in the answer."""
    limit = limits.get(video.request.index)
    return None if limit is None else limit - marker.most_bytes(video.ingredients)


def check(video: Video, limit: int | None) -> None:
    """Raise Unsupported where the file cannot be made as small as `limit`, whatever the video shows."""
    request, shape = video.request, video.shape
    frames = request.total_frames * frame_rate(request.output, request.fps) // request.fps
    if limit is not None and least_bytes(request.output.codec, shape.width, shape.height, frames) > limit:
        raise Unsupported(
            f"the file may not fit into the {limit} bytes that it has in the answer (INLINE_MAX_BYTES, shared by all "
            "videos of the job that are in the answer): send fewer, shorter or smaller videos, an mp4, or "
            "an upload_url",
            path=request.at("response_format" if request.output.inline else "output_format"),
        )
