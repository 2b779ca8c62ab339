"""Whether a job must stop, and why.

Set from the event loop (RunPod's stop signal, the job's time limit, a shutdown), read in the GPU thread between steps
and in every blocking stage, which is given `event`.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from worker.base.errors import Cancelled, Internal, WorkerError

logger = logging.getLogger(__name__)


class Flag(Protocol):
    """What ends a blocking stage once it is set: an event, or one of the values below."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Deadline:
    """Set once `time.monotonic()` reaches `ends_at`, or with `stop`."""

    ends_at: float
    stop: Flag | None = None

    @classmethod
    def after(cls, seconds: float, stop: Flag | None = None) -> Deadline:
        return cls(time.monotonic() + seconds, stop)

    def is_set(self) -> bool:
        return time.monotonic() >= self.ends_at or (self.stop is not None and self.stop.is_set())


class Stop:
    """Requested at most once: the first reason stays."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._reason: WorkerError = Cancelled()
        self._requested_at = 0.0

    @property
    def requested(self) -> bool:
        return self.event.is_set()

    @property
    def reason(self) -> WorkerError:
        return self._reason

    def request(self, reason: WorkerError) -> None:
        """End the job with `reason` as soon as a stage checks."""
        if not self.event.is_set():
            self._reason = reason
            self._requested_at = time.monotonic()
            self.event.set()

    def late(self, grace_s: float) -> Flag:
        """Set `grace_s` after the stop was requested: for work on what is finished already."""
        return _Late(self, grace_s)

    def extend(self) -> None:
        """Count the time since the request from now on: what was begun before it is only finished now."""
        self._requested_at = time.monotonic()

    def requested_for_s(self) -> float:
        """Seconds since the stop was requested, 0 where it was not."""
        return time.monotonic() - self._requested_at if self.event.is_set() else 0.0

    def check(self) -> None:
        """Raise the reason if the job is to end."""
        if self.event.is_set():
            raise self._reason


@dataclass(frozen=True, slots=True)
class _Late:
    stop: Stop
    grace_s: float

    def is_set(self) -> bool:
        return self.stop.requested and self.stop.requested_for_s() >= self.grace_s


def as_worker_error(failure: Exception, job_id: str, stop: Stop) -> WorkerError:
    """Every exception as an error of the contract; what was not foreseen is logged whole, reported without detail."""
    if isinstance(failure, Cancelled) and stop.requested:
        return stop.reason
    if isinstance(failure, WorkerError):
        return failure
    logger.error("unforeseen failure", exc_info=failure)
    return Internal(job_id)
