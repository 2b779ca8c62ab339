"""The embedded default storage: files under OUTPUT_DIR and `file://` URLs.

A file appears under its name only when it is complete: it is copied beside its place (the encoder's folder may lie on
another file system), flushed to the disk, then renamed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import random
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.delivery.storage.base import VIDEO_SUFFIX, Delivery, StoredFile, check_unchanged, deliver, links
from worker.media import VideoFile

logger = logging.getLogger(__name__)

PART_KEEP_S = 24 * 3600.0
_CHUNK_BYTES = 1024 * 1024
_SWEEP_BUDGET_S = 2.0
_SWEEP_EVERY_S = 3600.0
_PART = ".part"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_FOLDER = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR})


class LocalStorage:
    """Writes to a folder, which is made when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._shown = str(folder)
        # Resolved once: a later change of the working directory must not move the output.
        self._folder = folder.resolve()
        self._next_sweep = 0.0

    @staticmethod
    def is_configured(settings: Settings) -> bool:  # noqa: ARG004
        return True

    @classmethod
    def from_settings(cls, settings: Settings) -> LocalStorage:
        return cls(settings.output_dir)

    def describe(self) -> str:
        return f"folder {self._shown}"

    def store(self, video: VideoFile, key: str) -> Delivery:
        """See `Storage.store`."""
        return deliver(video, key, self._put)

    def holds(self, key: str, *, sha256: str) -> bool:
        """See `Storage.holds`. Reads the file: a folder keeps no digest beside it."""
        try:
            with (self._folder / (key + VIDEO_SUFFIX)).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as failure:
            raise UploadFailed("the video could not be read in OUTPUT_DIR: check that folder and its disk") from failure

    def sweep(self) -> int:
        """See `Storage.sweep`: files whose copying ended with its process. Looks once an hour, for 2 s at most."""
        began = time.monotonic()
        if began < self._next_sweep:
            return 0
        self._next_sweep = began + _SWEEP_EVERY_S
        removed = 0
        with suppress(OSError):
            for folder in self._job_folders():
                if time.monotonic() > began + _SWEEP_BUDGET_S:
                    break
                with suppress(OSError):
                    removed += sum(_is_left_behind(part) and _removed(part) for part in folder.glob(f".*{_PART}"))
        if removed:
            logger.info("removed %d unfinished file(s) of workers that were killed", removed)
        return removed

    def _job_folders(self) -> Iterator[Path]:
        """By the key: videos / day / job. The days in random order: what one sweep has no time for, another finds."""
        days = list((self._folder / "videos").iterdir())
        random.shuffle(days)
        for day in days:
            with suppress(NotADirectoryError):
                yield from day.iterdir()

    def links(self, key: str, *, poster: bool) -> Delivery:
        """See `Storage.links`."""
        return links(key, self._url, poster=poster)

    def _url(self, key: str) -> str:
        return (self._folder / key).as_uri()

    def _put(self, item: StoredFile) -> str:
        target = self._folder / item.key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_then_rename(item, target)
        except OSError as failure:
            logger.warning("writing %s failed: %s", item.key, errno.errorcode.get(failure.errno or 0, "unknown error"))
            raise UploadFailed(_advice(failure)) from failure
        return self._url(item.key)


def _copy_then_rename(item: StoredFile, target: Path) -> None:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}{_PART}")
    try:
        with item.path.open("rb") as source, part.open("xb") as copy:
            with suppress(OSError):  # on a file system without locks nothing is swept
                fcntl.flock(copy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            digest = hashlib.sha256()
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                copy.write(chunk)
            check_unchanged(item, digest.hexdigest())
            copy.flush()
            os.fsync(copy.fileno())
        # After the close: a network volume may report a full quota only there.
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _is_left_behind(part: Path) -> bool:
    """Older than a day, and nobody writes it. Raises OSError."""
    if time.time() - part.stat().st_mtime <= PART_KEEP_S:
        return False
    with part.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _removed(part: Path) -> bool:
    with suppress(FileNotFoundError):  # another worker sweeps too
        part.unlink()
        return True
    return False


def _advice(failure: OSError) -> str:
    if failure.errno in _FULL:
        return "the disk of OUTPUT_DIR is full: free space there or point OUTPUT_DIR elsewhere, then send the job again"
    if failure.errno in _FORBIDDEN:
        return "the worker may not write to OUTPUT_DIR: grant it write permission or point OUTPUT_DIR elsewhere"
    if failure.errno in _NO_FOLDER:
        return "OUTPUT_DIR cannot be used as a folder, a file is in the way: point OUTPUT_DIR elsewhere"
    return "the video could not be written to OUTPUT_DIR: check that folder and its disk, then send the job again"
