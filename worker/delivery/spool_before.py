"""Videos that a worker of an earlier version kept on a volume, taken over by the spool of this one.

That version wrote three files of one stem, `KEY-INDEX-RANDOM`: the video, its poster, and a JSON that had the result
and the job's id and payload. Now the journal has the result. What cannot be taken over is set aside with a line in the
log: the video is not lost, but nobody will be asked to store it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.base import files, locks
from worker.delivery.journal import Journal, stem_of
from worker.delivery.storage.base import POSTER_SUFFIX, VIDEO_SUFFIXES

logger = logging.getLogger(__name__)


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    payload_digest: str
    index: int
    result: dict[str, Any]


def take_over(folder: Path, journal: Journal, place_of: Callable[[str, int, str], Path]) -> None:
    """Give every video of the earlier version its new name and its record. Raises OSError with the rest untouched."""
    for old in folder.glob("*.json"):
        # Where a worker of that version is storing it, it is done soon.
        with suppress(BlockingIOError, FileNotFoundError), locks.claimed(old) as content:
            _take_over(old, content, journal, place_of)


def _take_over(old: Path, content: bytes, journal: Journal, place_of: Callable[[str, int, str], Path]) -> None:
    video, poster = old.with_suffix(VIDEO_SUFFIXES[0]), old.with_suffix(POSTER_SUFFIX)
    try:
        kept = _Kept.model_validate_json(content)
        entry = journal.named(stem_of(kept.job_id))
    except ValidationError:
        kept, entry = None, None
    if kept is None or entry is None or entry.payload_digest != kept.payload_digest:
        for path in (old, video, poster):
            if path.exists():
                files.set_aside(path)
        return
    place = place_of(kept.job_id, kept.index, video.suffix)
    if not place.exists():
        if not journal.record_unstored(entry, kept.index, kept.result):
            return
        with suppress(FileNotFoundError):
            poster.replace(place.with_suffix(POSTER_SUFFIX))
        with suppress(FileNotFoundError):
            video.replace(place)
        logger.info("the kept video %s is taken over from an earlier version", place.stem)
    for path in (video, poster, old):
        path.unlink(missing_ok=True)
