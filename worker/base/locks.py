"""Locks between threads, processes and workers on one volume: an flock that the kernel frees when its holder dies.

held      waits as long as it takes      a download
locked    waits for a few seconds        a small file
claimed   does not wait                  a file that is read, then replaced or removed
sole      waits as long as it may    work on something that is no file
taken     does not wait                  a file that is open already
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from worker.base.errors import Cancelled

logger = logging.getLogger(__name__)

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


def taken(handle: int) -> bool:
    """Whether the lock of an open file is ours now; it lasts until `handle` is closed.

    Raises OSError where the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def held(
    path: Path,
    *,
    doing: str,
    stopped: Callable[[], bool] | None = None,
    log_every_s: float = 30.0,
    poll_s: float = 0.25,
) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; wait as long as another process holds it.

    While waiting, a line of the log says every `log_every_s` what the other one is `doing`. Raises Cancelled once
    `stopped` returns True, OSError where the volume has no locks: two downloads at once would do harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock_file(path) as handle:
        started = log_at = time.monotonic()
        while not taken(handle):
            if stopped is not None and stopped():
                raise Cancelled("the worker was stopped while it waited for the model")
            if (now := time.monotonic()) >= log_at:
                logger.info("another worker is %s; waiting for it (%.0f s so far)", doing, now - started)
                log_at = now + log_every_s
            time.sleep(poll_s)
        yield


@contextmanager
def locked(path: Path, *, wait_s: float, poll_s: float = 0.02) -> Iterator[None]:
    """Hold the lock file `path`, which is made and never removed, against threads, processes and other workers.

    A file system without locks counts as used by one worker. Raises OSError, TimeoutError (one of them) after `wait_s`.
    """
    with _lock_file(path) as handle:
        deadline = time.monotonic() + wait_s
        while not _taken_or_lockless(handle):
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "a lock is held for too long by another worker")
            time.sleep(poll_s)
        yield


@contextmanager
def sole(path: Path, *, stopped: Callable[[], bool], poll_s: float = 0.05) -> Iterator[None]:
    """Hold the lock file `path`, which is made for this and removed again, against threads and other workers.

    A file system without locks counts as used by one worker. Raises BlockingIOError where it is held and `stopped`
    returns True, other OSErrors.
    """
    while (handle := _made_and_taken(path)) is None:
        if stopped():
            raise BlockingIOError(errno.EWOULDBLOCK, "held by another worker")
        time.sleep(poll_s)
    try:
        yield
    finally:
        with suppress(OSError):  # removed while it is held: whoever opened it meanwhile sees that it is another file
            path.unlink()
        os.close(handle)


def _made_and_taken(path: Path) -> int | None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with suppress(FileNotFoundError):
        if _taken_or_lockless(handle) and os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    os.close(handle)
    return None


@contextmanager
def claim(path: Path) -> Iterator[BinaryIO]:
    """The file `path`, open to be read, which nobody else may claim meanwhile.

    A file system without locks counts as used by one worker. Raises BlockingIOError where somebody else holds the
    file, FileNotFoundError where it is gone, other OSErrors. The file may be replaced or removed inside.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CLOEXEC), "rb") as file:
        if not _taken_or_lockless(file.fileno()):
            raise BlockingIOError(errno.EWOULDBLOCK, "claimed by another worker")
        # Between the opening and the lock the file may have been removed or replaced: then the lock means nothing.
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise BlockingIOError(errno.EWOULDBLOCK, "replaced by another worker")
        yield file


@contextmanager
def claimed(path: Path) -> Iterator[bytes]:
    """The content of `path`, else as `claim`."""
    with claim(path) as file:
        yield file.read()


@contextmanager
def _lock_file(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


def _taken_or_lockless(handle: int) -> bool:
    try:
        return taken(handle)
    except OSError as failure:
        if failure.errno not in _NO_LOCKS:
            raise
    return True
