"""One process at a time, on one volume: an flock that the kernel frees when its holder dies."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from worker.errors import Cancelled

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
