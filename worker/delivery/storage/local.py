"""The embedded default storage: files under OUTPUT_DIR and `file://` URLs.

A file appears under its name only when it is complete: it is copied beside its place (the encoder's folder may be on
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from worker.base import os_errors
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.base.stop import Flag
from worker.delivery.storage.base import (
    Delivery,
    Files,
    StoredFile,
    check_unchanged,
    deliver,
    deliver_beside,
    deliver_file,
    links,
)
from worker.media import VideoFile

logger = logging.getLogger(__name__)

PART_KEEP_S = 24 * 3600.0
_CHUNK_BYTES = 1024 * 1024
_SWEEP_BUDGET_S = 2.0
_SWEEP_EVERY_S = 3600.0
_PART = ".part"
_UNREADABLE = "the video could not be read in OUTPUT_DIR: check that folder and its disk"


class LocalStorage:
    """Writes to a folder, which is made when it is first needed."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown = str(folder)
        # Resolved once: a later change of the working directory must not move the output.
        self._folder = folder.resolve()
        self._next_sweep = clock()

    @staticmethod
    def is_configured(settings: Settings) -> bool:  # noqa: ARG004
        return True

    @classmethod
    def from_settings(cls, settings: Settings) -> LocalStorage:
        return cls(settings.output_dir)

    def describe(self) -> str:
        return f"folder {self._shown}"

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:  # noqa: ARG002
        """See `Storage.store`."""
        return deliver(video, key, self._put)

    def store_beside(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:  # noqa: ARG002
        """See `Storage.store_beside`."""
        return deliver_beside(video, key, self._put)

    def store_file(self, file: Path, name: str, *, stop: Flag | None = None) -> str:  # noqa: ARG002
        """See `Storage.store_file`."""
        return deliver_file(file, name, self._put)

    def holds(self, name: str, *, sha256: str, stop: Flag | None = None) -> bool:  # noqa: ARG002
        """See `Storage.holds`. Reads the file: a folder keeps no digest beside it."""
        try:
            with (self._folder / name).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == sha256
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as failure:
            raise UploadFailed(_UNREADABLE) from failure

    def read(self, name: str, *, stop: Flag | None = None) -> bytes:  # noqa: ARG002
        """See `Storage.read`."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as failure:
            raise UploadFailed(_UNREADABLE) from failure

    def sweep(self) -> None:
        """See `Storage.sweep`: files whose copying ended with its process. Looks once an hour, for 2 s at most."""
        began = self._clock()
        if began < self._next_sweep:
            return
        self._next_sweep = began + _SWEEP_EVERY_S
        removed = 0
        with suppress(OSError):
            for folder in self._job_folders():
                if self._clock() > began + _SWEEP_BUDGET_S:
                    break
                with suppress(OSError):
                    for part in folder.glob(f".*{_PART}"):
                        if _is_left_behind(part):
                            part.unlink()
                            removed += 1
        if removed:
            logger.info("removed %d unfinished file(s) of workers that were killed", removed)

    def _job_folders(self) -> Iterator[Path]:
        """By the key: videos / day / job. The days in random order: what one sweep has no time for, another finds."""
        days = list((self._folder / "videos").iterdir())
        random.shuffle(days)
        for day in days:
            with suppress(NotADirectoryError):
                yield from day.iterdir()

    def links(self, key: str, files: Files) -> Delivery:
        """See `Storage.links`."""
        return links(key, files, self._url)

    def _url(self, key: str) -> str:
        return (self._folder / key).as_uri()

    def _put(self, item: StoredFile) -> str:
        target = self._folder / item.key
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_then_rename(item, target)
        except OSError as failure:
            logger.warning("writing %s failed: %s", item.key, errno.errorcode.get(failure.errno or 0, "unknown error"))
            reason, advice = os_errors.reason_of(failure)
            message = f"OUTPUT_DIR {reason}: {advice}, or point OUTPUT_DIR elsewhere, then send the job again"
            raise UploadFailed(message) from failure
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
