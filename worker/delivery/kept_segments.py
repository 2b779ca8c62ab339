"""Finished segments of videos that are still being made, so that a worker that dies goes on behind the last of them.

A segment is two files on STATE_DIR: its frames without loss, and behind them a record, which makes them count. They are
copies: whoever makes the video works on its own. What is here is removed once the video is stored or in the spool, the
oldest first where it is more than `MAX_BYTES`, and everything after 7 days. An unwritable STATE_DIR costs this
protection and nothing else.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.base import files
from worker.delivery.journal import Entry, stem_of

logger = logging.getLogger(__name__)

MAX_BYTES = 5 * 1024**3
_FOLDER = "segments"


class Segment(BaseModel):
    """A finished segment. `num_frames` are those that are shown; `lab` is their mean colour in CIE L*a*b*.

    `parameters` and `warnings` are the engine's. `tail` is what the next segment is handed over beside the frames.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, ser_json_bytes="base64", val_json_bytes="base64")

    seed: int
    prompt: str
    num_frames: int
    seam: float | None
    lab: tuple[float, float, float]
    parameters: Mapping[str, Any]
    warnings: tuple[str, ...]
    tail: bytes | None = None


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    payload_digest: str
    sha256: str
    segment: Segment


class KeptSegments:
    """The kept segments of all jobs. Blocks while files are copied; raises nothing."""

    def __init__(self, state: files.StateFolder, *, max_bytes: int = MAX_BYTES) -> None:
        self._state = state
        self._max_bytes = max_bytes

    def restore(self, entry: Entry, index: int, number: int, path: Path) -> Segment | None:
        """Copy the frames of segment `number` of video `index` to `path`, every byte checked; None where it is not
        kept."""
        try:
            frames, place = self._places(entry.job_id, index, number)
            record = _Record.model_validate_json(place.read_bytes())
            if (record.job_id, record.payload_digest) != (entry.job_id, entry.payload_digest):
                return None
            shutil.copyfile(frames, path)
            return record.segment if files.sha256_of(path) == record.sha256 else None
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as failure:
            self._state.cannot(failure)
            return None

    def keep(self, entry: Entry, index: int, number: int, segment: Segment, path: Path) -> None:
        """Keep a copy of the frames in `path`, which are `segment`."""
        size = path.stat().st_size
        if size > self._max_bytes:
            logger.warning("segment %d of video %d is too large to be kept: %d bytes", number, index, size)
            return
        try:
            self._make_room(size)
            frames, place = self._places(entry.job_id, index, number)
            with files.replacing(frames) as temporary:
                shutil.copyfile(path, temporary)
            record = _Record(
                job_id=entry.job_id,
                payload_digest=entry.payload_digest,
                sha256=files.sha256_of(path),
                segment=segment,
            )
            files.write_atomically(place, record.model_dump_json().encode())
        except OSError as failure:
            self._state.cannot(failure)

    def remove(self, job_id: str, index: int) -> None:
        """Remove the segments of a video that needs them no more."""
        try:
            for path in self._state.folder(_FOLDER).glob(f"{stem_of(job_id)}-{index:02d}-*"):
                path.unlink(missing_ok=True)
        except OSError as failure:
            self._state.cannot(failure)

    def sweep(self) -> None:
        """Remove what has expired. Bounded in time."""
        try:
            files.sweep(self._state.folder(_FOLDER), now=self._state.now())
        except OSError as failure:
            self._state.cannot(failure)

    def _places(self, job_id: str, index: int, number: int) -> tuple[Path, Path]:
        """Where the frames of a segment are, and its record."""
        stem = self._state.folder(_FOLDER) / f"{stem_of(job_id)}-{index:02d}-{number:02d}"
        return stem.with_name(f"{stem.name}.frames"), stem.with_name(f"{stem.name}.json")

    def _make_room(self, size: int) -> None:
        """Remove the oldest frames until `size` bytes more are within the bound."""
        kept = sorted(((path.stat(), path) for path in self._state.folder(_FOLDER).iterdir()), key=_age)
        total = sum(stat.st_size for stat, _ in kept)
        for stat, path in kept:
            if total + size <= self._max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size


def _age(found: tuple[Any, Path]) -> float:
    return float(found[0].st_mtime)
