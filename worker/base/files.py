"""Small files on STATE_DIR: written whole or not at all, locked across workers, damaged ones set aside.

STATE_DIR may be a network volume that several workers share, and may be unwritable: its users catch OSError, call
`StateFolder.cannot` and go on without the protection that the file would have given.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)

KEEP_S = 7 * 24 * 3600.0
_TEMPORARY = ".tmp-"
_TEMPORARY_KEEP_S = 3600.0
_DAMAGED = ".damaged"
_SWEEP_AT_MOST = 20_000


class StateFolder:
    """The folder STATE_DIR. It is made when it is first needed; that it cannot be used is said once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._said = False
        self._lock = threading.Lock()

    def folder(self, name: str) -> Path:
        """The folder `name` inside, made where it is missing. Raises OSError."""
        folder = self._root / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def cannot(self, failure: Exception) -> None:
        """Say, the first time only, what is lost while STATE_DIR cannot be used."""
        with self._lock:
            if self._said:
                return
            self._said = True
        _log.warning(
            "STATE_DIR (%s) cannot be used: %s. Jobs run on, but a job delivered again is made again, and a webhook "
            "that its receiver misses is lost. Make the folder writable, or set STATE_DIR to one that is.",
            self._root,
            getattr(failure, "strerror", None) or type(failure).__name__,
        )


def file_key(job_id: str) -> str:
    """16 hex digits that stand for a job id in file names: distinct on case-insensitive file systems too."""
    return hashlib.sha256(job_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def readable(job_id: str) -> str:
    """The job id as the part of a file name that people read: short, no separators."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", job_id)[:48]


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, mode 0600: a reader, and a crash at any moment, sees the old file or the new one.

    Raises OSError with nothing changed; a network volume may report its quota only when the file is closed.
    """
    handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # Not every file system can sync a folder; the file itself is already safe.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def set_aside(path: Path) -> None:
    """Move a file that cannot be read out of the way, with one line in the log."""
    _log.warning("state file %s is damaged: it counts as absent and is kept as %s%s", path.name, path.name, _DAMAGED)
    with suppress(OSError):
        path.replace(path.with_name(path.name + _DAMAGED))


def sweep(folder: Path, *, now: float, budget_s: float = 2.0) -> int:
    """Remove what is older than 7 days, and temporary files older than an hour; answers how many.

    Looks at no more than 20,000 files and stops after `budget_s`: what is left is for the next sweep. Raises OSError
    where the folder cannot be listed.
    """
    deadline = time.monotonic() + budget_s
    removed = 0
    with os.scandir(folder) as listing:
        for count, found in enumerate(listing):
            if count >= _SWEEP_AT_MOST or time.monotonic() > deadline:
                break
            keep_s = _TEMPORARY_KEEP_S if found.name.startswith(_TEMPORARY) else KEEP_S
            # Another worker may sweep at the same time.
            with suppress(OSError):
                if found.is_file(follow_symlinks=False) and now - found.stat().st_mtime > keep_s:
                    Path(found.path).unlink()
                    removed += 1
    return removed
