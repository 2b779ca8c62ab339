"""A video as the encoder leaves it, its result as the caller gets it, and a disk that is full."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.media import VideoFile


def make_video(folder: Path, content: bytes = b"video bytes", poster: bytes | None = b"poster bytes") -> VideoFile:
    """An encoded video in `folder`, which is made; its content need not be one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, poster_path = folder / "encoded.mp4", folder / "encoded.jpg"
    path.write_bytes(content)
    if poster is not None:
        poster_path.write_bytes(poster)
    digest = hashlib.sha256(content).hexdigest()
    return VideoFile(path, None if poster is None else poster_path, 64, 32, 9, 16, len(content), digest)


def result_of(video: VideoFile, index: int = 0, job_id: str = "abc-123") -> dict[str, Any]:
    return {
        "index": index,
        "status": "completed",
        "job_id": job_id,
        "video_url": "",
        "thumbnail_url": None,
        "num_frames": video.num_frames,
        "resolution": f"{video.width}x{video.height}",
        "fps": video.fps,
        "seed": 7,
        "prompt": "a heron stands in the reeds",
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
