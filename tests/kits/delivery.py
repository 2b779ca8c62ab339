"""A video as the encoder leaves it, its result as the caller gets it, and a disk that is full."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.media import FORMATS, VideoFile
from worker.request.payload import OutputFormat

KEY = "videos/2026-11-21/abc-123/0"
MIB = 1024 * 1024


def make_video(
    folder: Path,
    content: bytes = b"video bytes",
    poster: bytes | None = b"poster bytes",
    *,
    frames: bytes | None = None,
    output_format: OutputFormat = "mp4",
) -> VideoFile:
    """An encoded video in `folder`, which is made, with what stands beside it; its content need not be one."""
    folder.mkdir(parents=True, exist_ok=True)
    form = FORMATS[output_format]
    path = folder / f"encoded{form.suffix}"
    path.write_bytes(content)
    beside: list[Path | None] = []
    for name, there in (("encoded.jpg", poster), ("encoded.zip", frames)):
        beside.append(None if there is None else folder / name)
        if there is not None:
            (folder / name).write_bytes(there)
    digest = hashlib.sha256(content).hexdigest()
    return VideoFile(path, beside[0], 64, 32, 9, 16, len(content), digest, frames=beside[1], format=form)


def result_of(video: VideoFile, index: int = 0, job_id: str = "abc-123") -> dict[str, Any]:
    return {
        "index": index,
        "status": "completed",
        "job_id": job_id,
        "video_url": "",
        "thumbnail_url": None,
        **({} if video.frames is None else {"frames_url": None}),
        "num_frames": video.num_frames,
        "resolution": f"{video.width}x{video.height}",
        "fps": video.fps,
        "seed": 7,
        "prompt": "a heron stands in the reeds",
        "parameters": {"output_format": video.format.name},
        "size_bytes": video.size_bytes,
        "sha256": video.sha256,
        "timings": {"generate": 3.0, "upload": 1.5, "total": 5.0},
    }


@contextmanager
def no_file_above(size_bytes: int) -> Iterator[None]:
    """The kernel ends every write behind so many bytes, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
