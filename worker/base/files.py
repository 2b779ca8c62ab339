"""Files that appear whole or not at all, their hashes, and the small files on STATE_DIR.

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
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

logger = logging.getLogger(__name__)

KEEP_S = 7 * 24 * 3600.0
TEMPORARY_KEEP_S = 3600.0
CLOCK_OFF_S = 300.0
_SAME_CLOCK_S = 60.0
_COMPARE_EVERY_S = 3600.0
_TEMPORARY = ".tmp-"
_DAMAGED = ".damaged"
_SWEEP_AT_MOST = 20_000


class StateFolder:
    """The folder STATE_DIR. It is made when it is first needed; that it is unusable is logged once.

    `now` is the clock of the volume, by which its files age: several workers share them, and the clock of one may be
    wrong by days.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._reported = False
        self._lock = threading.Lock()
        self._ahead_s = 0.0
        self._compare_at = 0.0

    def folder(self, name: str) -> Path:
        """The folder `name` inside, made where it is missing. Raises OSError."""
        folder = self._root / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def now(self) -> float:
        """Seconds since the epoch, by the clock of the volume."""
        return time.time() + self.ahead_s()

    def ahead_s(self) -> float:
        """How far the volume's clock is ahead of this worker's, 0 for less than a minute; compared once an hour.

        A difference of more than 5 minutes is logged. Raises nothing.
        """
        with self._lock:
            if time.monotonic() < self._compare_at:
                return self._ahead_s
            self._compare_at = time.monotonic() + _COMPARE_EVERY_S
        try:
            ahead_s = _lead_of_a_new_file(self.folder("."))
        except OSError:
            return self._ahead_s
        self._ahead_s = ahead_s if abs(ahead_s) >= _SAME_CLOCK_S else 0.0
        if abs(ahead_s) > CLOCK_OFF_S:
            logger.warning(
                "the clock of this worker is %.0f minutes %s that of STATE_DIR: webhooks may be refused by their time "
                "stamps, and uploads by their signatures. Set the machine's clock.",
                *(abs(ahead_s) / 60, "behind" if ahead_s > 0 else "ahead of"),
            )
        return self._ahead_s

    def cannot(self, failure: Exception) -> None:
        """Log, the first time only, what is lost while STATE_DIR cannot be used."""
        with self._lock:
            if self._reported:
                return
            self._reported = True
        logger.warning(
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


@contextmanager
def replacing(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Yields a free name in the folder of `path`. The file that the block puts there replaces `path` at its end.

    A reader, and a crash at any moment, sees the old file or the new one. A block that raises changes nothing.
    `lasting`: wait until the disk has the bytes; False for files that nobody needs after a crash. Raises OSError: a
    network volume may report its quota only at the end.
    """
    temporary = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        if lasting:
            _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if lasting:
        # Not every file system can sync a folder; the file itself is already safe.
        with suppress(OSError):
            _sync(path.parent)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `content`, as `replacing` does. `mode` is subject to the umask. Raises OSError."""
    with replacing(path) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "wb") as file:
            file.write(content)


def is_temporary(name: str) -> bool:
    """Whether a file of that name is what `replacing` left behind, or still writes."""
    return name.startswith(_TEMPORARY)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lead_of_a_new_file(folder: Path) -> float:
    """How far the time stamp of a file that is written now is ahead of this machine's clock. Raises OSError."""
    handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(b".")
        return Path(name).stat().st_mtime - time.time()
    finally:
        Path(name).unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Move a file that cannot be read out of the way, with one line in the log."""
    logger.warning("state file %s is damaged: it counts as absent and is kept as %s%s", path.name, path.name, _DAMAGED)
    with suppress(OSError):
        path.replace(path.with_name(path.name + _DAMAGED))


def sweep(folder: Path, *, now: float, budget_s: float = 2.0) -> int:
    """Remove what is older than 7 days, and temporary files older than an hour; returns how many.

    Looks at no more than 20,000 files and stops after `budget_s`: what is left is for the next sweep. Raises OSError
    where the folder cannot be listed.
    """
    deadline = time.monotonic() + budget_s
    removed = 0
    with os.scandir(folder) as listing:
        for count, found in enumerate(listing):
            if count >= _SWEEP_AT_MOST or time.monotonic() > deadline:
                break
            keep_s = TEMPORARY_KEEP_S if is_temporary(found.name) else KEEP_S
            # Another worker may sweep at the same time.
            with suppress(OSError):
                if found.is_file(follow_symlinks=False) and now - found.stat().st_mtime > keep_s:
                    Path(found.path).unlink()
                    removed += 1
    return removed
