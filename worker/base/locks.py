"""Locks between threads, processes and workers on one volume: an flock that the kernel frees when its holder dies.

`held` waits as long as it takes (a download), `locked` for a few seconds (a small file), `claimed` not at all.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from worker.base.errors import Cancelled

logger = logging.getLogger(__name__)

WAIT_LOG_S = 30.0
_POLL_S = 0.25


@contextmanager
def held(path: Path, *, doing: str, stopped: Callable[[], bool] | None = None) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block; wait as long as another process holds it.

    While waiting, a line of the log says every WAIT_LOG_S what the other one is `doing`. Raises Cancelled once
    `stopped` answers True, OSError where the volume takes no lock file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A soft lock would outlive a killed holder: without flock it is better to fail.
    lock = FileLock(path, fallback_to_soft=False)
    started = time.monotonic()
    wait_s = 0.0
    while True:
        try:
            lock.acquire(timeout=wait_s, poll_interval=_POLL_S, cancel_check=stopped)
            break
        except Timeout:
            if stopped is not None and stopped():
                raise Cancelled("the worker was stopped while it waited for the model") from None
            logger.info("another worker is %s; waiting for it (%.0f s so far)", doing, time.monotonic() - started)
            wait_s = WAIT_LOG_S
    try:
        yield
    finally:
        lock.release()


_LOCK_POLL_S = 0.02
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})


@contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[None]:
    """Hold the lock file `path`, which is made and never removed, against threads, processes and other workers.

    flock holds across mounts of a network volume, and the kernel frees it when its holder dies. Raises OSError,
    TimeoutError (one of them) after `wait_s`.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while not _try_lock(handle):
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, "a lock is held for too long by another worker")
            time.sleep(_LOCK_POLL_S)
        yield
    finally:
        os.close(handle)


@contextmanager
def claimed(path: Path) -> Iterator[bytes]:
    """The content of `path`, which nobody else may claim meanwhile.

    Raises BlockingIOError where somebody else holds it, FileNotFoundError where it is gone, other OSErrors. The file
    may be replaced or removed inside.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if not _try_lock(handle):
            raise BlockingIOError(errno.EWOULDBLOCK, "claimed by another worker")
        # Between the opening and the lock the file may have been removed or replaced: then the lock means nothing.
        if not os.path.samestat(os.fstat(handle), path.stat()):
            raise BlockingIOError(errno.EWOULDBLOCK, "replaced by another worker")
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read()
        yield content
    finally:
        os.close(handle)


def _try_lock(handle: int) -> bool:
    """Whether the lock is ours. A file system that has no locks counts as used by one worker."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as failure:
        if failure.errno not in _NO_LOCKS:
            raise
    return True
