"""One kept video on the disk: up to three files of one stem in one folder, written whole or not at all.

It counts from the moment at which the last of them, the JSON, appears, and no longer once that is gone: a process that
is killed at any moment leaves nothing half-visible. The files hold prompts and results, so they have mode 0600.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from worker.base import files
from worker.media import VideoFile

_log = logging.getLogger(__name__)

ENTRY = ".json"
_VIDEO, _POSTER = ".mp4", ".jpg"
_CHUNK_BYTES = 1024 * 1024


class Damaged(Exception):
    """The bytes of a video are not those that were encoded."""


class Kept(BaseModel):
    """A video that is to lie under `key` of the storage; `result` is what the caller is told, but for the URLs."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    payload_digest: str
    index: int
    key: str
    result: dict[str, Any] = Field(repr=False)
    width: int
    height: int
    num_frames: int
    fps: int
    size_bytes: int
    sha256: str


def new_place(folder: Path, job_id: str, index: int) -> Path:
    """The path of the JSON of an entry that is to be written; unlike any other."""
    return folder / f"{_stem(job_id, index)}-{secrets.token_hex(4)}{ENTRY}"


def places_of(folder: Path, job_id: str, index: int) -> list[Path]:
    """The entries of one video."""
    return sorted(folder.glob(f"{_stem(job_id, index)}-*{ENTRY}"))


def copy_files(video: VideoFile, place: Path) -> None:
    """Copy the video and its poster beside `place`, safe on the disk; without the JSON they do not count.

    Raises OSError, and Damaged where the bytes read are not those that were encoded.
    """
    if _copy(video.path, place.with_suffix(_VIDEO)) != video.sha256:
        raise Damaged
    if video.poster is not None:
        _copy(video.poster, place.with_suffix(_POSTER))


def publish(place: Path, kept: Kept) -> None:
    """Write the JSON: now the entry counts. Raises OSError, ValueError for text that JSON cannot hold."""
    files.write_atomically(place, kept.model_dump_json().encode())


def read(place: Path) -> Kept | None:
    """The entry at `place`; None where it is damaged, and then it is removed. Raises FileNotFoundError, OSError."""
    return parse(place, place.read_bytes())


def parse(place: Path, content: bytes) -> Kept | None:
    """The entry in `content`, which was read at `place`; else as `read`."""
    try:
        return Kept.model_validate_json(content)
    except ValidationError:
        discard(place)
        return None


def file_of(place: Path, kept: Kept) -> VideoFile | None:
    """The video of an entry, every byte checked; None where it is damaged, and then the entry is removed."""
    path, poster = place.with_suffix(_VIDEO), place.with_suffix(_POSTER)
    try:
        with path.open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == kept.sha256
    except FileNotFoundError:
        whole = False
    if not whole:
        if place.exists():
            discard(place)
        return None
    return VideoFile(
        path=path,
        poster=poster if poster.exists() else None,
        width=kept.width,
        height=kept.height,
        num_frames=kept.num_frames,
        fps=kept.fps,
        size_bytes=kept.size_bytes,
        sha256=kept.sha256,
    )


def discard(place: Path) -> None:
    """Remove an entry that cannot be used, with a line in the log."""
    _log.warning("the kept video %s is damaged and goes", place.stem)
    remove(place)


def remove(place: Path) -> None:
    """Remove an entry: first what makes it count."""
    for path in files_of(place):
        path.unlink(missing_ok=True)


def files_of(place: Path) -> tuple[Path, Path, Path]:
    """All that an entry may consist of, its JSON first."""
    return place, place.with_suffix(_VIDEO), place.with_suffix(_POSTER)


def sizes(folder: Path) -> dict[Path, os.stat_result]:
    """What the operating system says of every file in `folder`."""
    found = {}
    with os.scandir(folder) as listing:
        for file in listing:
            with suppress(FileNotFoundError):  # another worker removed it meanwhile
                found[Path(file.path)] = file.stat(follow_symlinks=False)
    return found


def _stem(job_id: str, index: int) -> str:
    return f"{files.file_key(job_id)}-{index:02d}"


def _copy(source: Path, target: Path) -> str:
    """Copy a file, mode 0600, flushed to the disk; answers the SHA-256 of the bytes."""
    digest = hashlib.sha256()
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as copy, source.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest()
