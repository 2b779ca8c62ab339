"""The files of the spool, mode 0600: a kept video `STEM-INDEX.mp4` (or .webm, .gif, .webp), its poster
`STEM-INDEX.jpg` and the ZIP of its frames `STEM-INDEX.zip`.

STEM is that of the job's entry in the journal. A video appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from worker.delivery.storage.base import FRAMES_SUFFIX, POSTER_SUFFIX, VIDEO_SUFFIXES
from worker.media import FORMATS, VideoFile

logger = logging.getLogger(__name__)

NAME = re.compile(r"(.+)-(\d{2,4})(\.mp4|\.webm|\.gif|\.webp|\.jpg|\.zip)")
TEMPORARY = ".tmp-"
_CHUNK_BYTES = 1024 * 1024


def whole(place: Path, result: Mapping[str, Any]) -> VideoFile | None:
    """The video at `place`, whose result is known; None where it is gone, or damaged and then removed."""
    try:
        with place.open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == result["sha256"]
    except FileNotFoundError:
        return None
    if not whole:
        logger.warning("the kept video %s is damaged and goes", place.stem)
        remove(place)
        return None
    poster, frames = _beside(place)
    width, height = map(int, result["resolution"].split("x"))
    return VideoFile(
        path=place,
        poster=poster if poster.exists() else None,
        width=width,
        height=height,
        num_frames=result["num_frames"],
        fps=result["fps"],
        size_bytes=result["size_bytes"],
        sha256=result["sha256"],
        frames=frames if frames.exists() else None,
        format=next(each for each in FORMATS.values() if each.suffix == place.suffix),
    )


def copy(source: Path, target: Path) -> str:
    """Copy a file, mode 0600, flushed to the disk; returns the SHA-256 of the bytes."""
    digest = hashlib.sha256()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as copy, source.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()


def files_of(place: Path) -> tuple[Path, ...]:
    return place, *_beside(place)


def _beside(place: Path) -> tuple[Path, Path]:
    return place.with_suffix(POSTER_SUFFIX), place.with_suffix(FRAMES_SUFFIX)


def remove(place: Path) -> None:
    """Remove a video, and then what stands beside it."""
    for path in files_of(place):
        path.unlink(missing_ok=True)


def sizes(folder: Path) -> dict[Path, os.stat_result]:
    """Size and times of every file in `folder`."""
    found = {}
    with os.scandir(folder) as listing:
        for file in listing:
            with suppress(FileNotFoundError):  # another worker removed it meanwhile
                found[Path(file.path)] = file.stat(follow_symlinks=False)
    return found


def videos(sizes: Mapping[Path, os.stat_result]) -> list[Path]:
    return [path for path in sizes if path.suffix in VIDEO_SUFFIXES and not path.name.startswith(TEMPORARY)]
