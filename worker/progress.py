"""Progress of a job: 0 to 100 over all of its videos, never down, throttled, told to several sinks.

An event goes out at most every 2 seconds and every 5 percent (both must have passed; the first one at once), and
never for a video that has its final event. Nothing here raises into, or holds up, the thread that generates.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

_log = logging.getLogger(__name__)

Status = Literal["queued", "loading", "generating", "encoding", "uploading"]

# Where each stage begins and ends within one video. Generation is nearly all of the time of a job.
_SPAN: dict[str, tuple[float, float]] = {
    "queued": (0.0, 0.0),
    "loading": (0.0, 0.05),
    "generating": (0.05, 0.90),
    "encoding": (0.90, 0.95),
    "uploading": (0.95, 1.0),
}


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """`progress` is whole percent of the job, `index` the video whose stage is told."""

    progress: int
    status: Status
    index: int


class Progress:
    """The progress of a job of `total` videos. Safe to call from any thread.

    Sinks are called under a lock, so that they see events in order; a sink must return at once.
    """

    def __init__(
        self,
        total: int,
        sinks: Sequence[Callable[[ProgressEvent], None]],
        *,
        clock: Callable[[], float] = time.monotonic,
        min_interval_s: float = 2.0,
        min_percent: int = 5,
    ) -> None:
        self._done = [0.0] * total
        self._final = [False] * total
        self._sinks = tuple(sinks)
        self._clock = clock
        self._min_interval_s = min_interval_s
        self._min_percent = min_percent
        self._last: tuple[float, int] | None = None
        self._lock = threading.Lock()

    def stage(self, index: int, status: Status, fraction: float = 0.0) -> None:
        """Video `index` is at `fraction` (0 to 1) of the stage `status`. Never raises, never waits for a receiver."""
        if not 0 <= index < len(self._done):
            return
        begin, end = _SPAN[status]
        within = min(fraction, 1.0) if fraction > 0.0 else 0.0  # NaN counts as 0
        with self._lock:
            self._done[index] = max(self._done[index], begin + (end - begin) * within)
            if not self._final[index]:
                self._tell(index, status)

    def finished(self, index: int) -> None:
        """Video `index` has its final event, good or bad: it counts as done, and no event names it any more."""
        if not 0 <= index < len(self._done):
            return
        with self._lock:
            self._done[index] = 1.0
            self._final[index] = True

    def _tell(self, index: int, status: Status) -> None:
        # The sum of binary fractions may fall a hair short of a whole percent.
        percent = min(100, int(100.0 * sum(self._done) / len(self._done) + 1e-9))
        now = self._clock()
        if self._last is not None:
            last_at, last_percent = self._last
            if now - last_at < self._min_interval_s or percent - last_percent < self._min_percent:
                return
        self._last = (now, percent)
        event = ProgressEvent(progress=percent, status=status, index=index)
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:  # noqa: BLE001 - progress never fails a job
                _log.warning("a progress sink failed; the job goes on", exc_info=True)


class ProgressSender:
    """Sends progress events from one thread of its own: the latest wins, one at a time, none after a final event.

    `post` sends one event and may block for a few seconds; `offer` never does. Between the starts of two sends at
    least `every_s` pass, however late an earlier one was answered.
    """

    def __init__(self, post: Callable[[ProgressEvent], None], *, every_s: float = 2.0) -> None:
        self._post = post
        self._every_s = every_s
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webhook-progress")
        self._context = contextvars.copy_context()
        self._changed = threading.Condition()
        self._next: ProgressEvent | None = None
        self._in_flight: ProgressEvent | None = None
        self._running = False
        self._closed = False
        self._final: set[int] = set()
        self._earliest = 0.0

    def offer(self, event: ProgressEvent) -> None:
        """Send `event` soon, in the place of one that still waits. Thread-safe, returns at once."""
        with self._changed:
            if self._closed or event.index in self._final:
                return
            self._next = event
            if not self._running:
                self._running = True
                self._thread.submit(self._context.copy().run, self._send_all)

    def finish(self, index: int | None, *, wait_s: float) -> None:
        """No event of video `index` (of any video: None) starts any more; waits for the one under way."""
        with self._changed:
            if index is None:
                self._closed = True
            else:
                self._final.add(index)
            if self._next is not None and self._ended(self._next):
                self._next = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._in_flight is None or not self._ended(self._in_flight), wait_s)

    def close(self, *, wait_s: float) -> None:
        """Stop for good; waits at most `wait_s` for the event under way."""
        self.finish(None, wait_s=wait_s)
        self._thread.shutdown(wait=False)

    def _ended(self, event: ProgressEvent) -> bool:
        return self._closed or event.index in self._final

    def _send_all(self) -> None:
        while (event := self._take()) is not None:
            try:
                self._post(event)
            except Exception:  # noqa: BLE001 - progress never fails a job
                _log.warning("a progress event could not be sent; the job goes on", exc_info=True)
            finally:
                with self._changed:
                    self._in_flight = None
                    self._changed.notify_all()

    def _take(self) -> ProgressEvent | None:
        """The event to send now, after the pause that is due; None ends the thread's run."""
        with self._changed:
            while self._next is not None and (pause_s := self._earliest - time.monotonic()) > 0:
                self._changed.wait(pause_s)
            event, self._next = self._next, None
            self._in_flight = event
            self._running = event is not None
            self._earliest = time.monotonic() + self._every_s
            return event
