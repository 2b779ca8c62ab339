"""Whether a job must stop, and why.

Set from the event loop (RunPod's stop signal, the job's time limit, a shutdown), read in the GPU thread between steps
and in every blocking stage, which is given `event`.
"""

from __future__ import annotations

import logging
import threading

from worker.base.errors import Cancelled, Internal, WorkerError

logger = logging.getLogger(__name__)


class Stop:
    """Requested at most once: the first reason stays."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self._reason: WorkerError = Cancelled()

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
            self.event.set()

    def check(self) -> None:
        """Raise the reason if the job is to end."""
        if self.event.is_set():
            raise self._reason


def as_worker_error(failure: Exception, job_id: str, stop: Stop) -> WorkerError:
    """Every exception as an error of the contract; what was not foreseen is logged whole, reported without detail."""
    if isinstance(failure, Cancelled) and stop.requested:
        return stop.reason
    if isinstance(failure, WorkerError):
        return failure
    logger.error("unforeseen failure", exc_info=failure)
    return Internal(job_id)
