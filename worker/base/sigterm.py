"""SIGTERM: no new job, and a grace for the running one.

RunPod's SDK starts no new job after SIGTERM and waits for the running one without a limit. The platform does not wait
that long. After the grace the job's work ends within a step: what is finished is delivered; for the rest no webhook and
no answer is sent, and the next delivery of the job resumes behind the last finished video.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from worker.base.errors import Cancelled
from worker.base.stop import Stop

logger = logging.getLogger(__name__)
# What Python calls first when it ends, as multiprocessing does in its processes. There is no public name for it.
_join_threads: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]


class ShuttingDown(Cancelled):
    """The reason of a stop that leaves the job to another worker: no webhook is sent."""


def leave_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is the signal's
    """What SIGTERM does before there is a job: a worker that is process 1 would not even notice it otherwise."""
    os._exit(128 + number)


def end(status: int) -> NoReturn:
    """End the process with `status` once its threads have ended and what is registered for the exit has been called.

    Python's own end would also take its modules apart, torch's among them: 1 to 6 s for nothing.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is ending, and the handler's event loop is closed
    _join_threads()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader is gone, or it is closed
            stream.flush()
    os._exit(status)


class Shutdown:
    """Ends running jobs after SIGTERM. `install` once, in the main thread, with the event loop running."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._running: dict[Stop, Callable[[], None]] = {}
        self._beside: list[Callable[[], None]] = []
        self._installed = False
        self._begun = False
        self._over = False
        self._leave: Callable[[], Coroutine[Any, Any, None]] | None = None
        self._leaving: asyncio.Task[None] | None = None

    def install(self, leave: Callable[[], Coroutine[Any, Any, None]] | None = None) -> bool:
        """Stand before the SIGTERM handler that is installed (the SDK's), which is still called.

        SIGTERM also starts `leave`, which ends the process once nothing runs. Returns whether this was the first call;
        every other one does nothing.
        """
        if self._installed:
            return False
        self._installed = True
        self._leave = leave
        loop = asyncio.get_running_loop()
        previous = signal.getsignal(signal.SIGTERM)

        def on_signal(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.begin)
            if callable(previous) and previous is not leave_at_once:
                previous(number, frame)

        signal.signal(signal.SIGTERM, on_signal)
        return True

    def begin(self) -> None:
        """What SIGTERM does."""
        if self._begun:
            return
        self._begun = True
        logger.warning("SIGTERM: %d job(s) running, %g s to finish", len(self._running), self._grace_s)
        for end in tuple(self._beside):
            end()
        asyncio.get_running_loop().call_later(self._grace_s, self._end)
        if self._leave is not None:
            self._leaving = asyncio.create_task(self._leave())

    def _end(self) -> None:
        self._over = True
        for stop, hurry in self._running.items():
            stop.request(ShuttingDown())
            hurry()

    @contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """While inside, for work that is no job's: `end` is called when a shutdown begins, without any grace.

        Where it has begun before, at once. May be entered from any thread; `end` must return at once.
        """
        self._beside.append(end)
        try:
            if self._begun:
                end()
            yield
        finally:
            self._beside.remove(end)

    @contextmanager
    def watching(self, stop: Stop, hurry: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While inside, a shutdown ends the job through `stop`; at once where it has begun before the job.

        `hurry` is called when the grace is over: what is still under way has no more time. It must return at once.
        """
        if self._begun:
            stop.request(ShuttingDown())
        if self._over:
            hurry()
        self._running[stop] = hurry
        try:
            yield
        finally:
            self._running.pop(stop, None)
