"""Progress of a job: 0 to 100 over all of its videos, never down, throttled, sent to several sinks.

An event goes out at most every 2 seconds and every 5 percent (both must have passed; the first one, and each new
preview, at once), and never for a video that has its final event. Nothing here raises into, or holds up, the thread
that generates.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from worker.delivery.webhooks.progress_sender import ProgressEvent, Status

logger = logging.getLogger(__name__)

# Where each stage begins and ends within one video. Generation is nearly all of the time of a job.
_SPAN: dict[str, tuple[float, float]] = {
    "queued": (0.0, 0.0),
    "loading": (0.0, 0.05),
    "generating": (0.05, 0.90),
    "encoding": (0.90, 0.95),
    "uploading": (0.95, 1.0),
    "preparing": (0.0, 0.05),
    "training": (0.05, 0.90),
    "sampling": (0.90, 0.95),
}


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
        self._at: dict[int, ProgressEvent] = {}
        self._previews: dict[int, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def stage(
        self,
        index: int,
        status: Status,
        fraction: float = 0.0,
        *,
        step: int | None = None,
        steps: int | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Video `index` is at `fraction` (0 to 1) of the stage `status`. Never raises, never waits for a receiver."""
        if not 0 <= index < len(self._done):
            return
        begin, end = _SPAN[status]
        within = min(fraction, 1.0) if fraction > 0.0 else 0.0  # NaN counts as 0
        with self._lock:
            self._done[index] = max(self._done[index], begin + (end - begin) * within)
            if not self._final[index]:
                event = ProgressEvent(self._percent(), status, index, step, steps, eta_seconds)
                self._at[index] = event
                if self._is_due(event.progress):
                    self._send(event)

    def preview(self, index: int, url: str, step: int) -> None:
        """Video `index` has a new preview, of `step`: reported at once, and in every later event of the video."""
        with self._lock:
            if self._final[index]:
                return
            self._previews[index] = (url, step)
            at = self._at.get(index, ProgressEvent(0, "generating", index))
            self._send(replace(at, progress=self._percent()))

    def finished(self, index: int) -> None:
        """Video `index` has its final event, good or bad: it counts as done, and no event names it any more."""
        if not 0 <= index < len(self._done):
            return
        with self._lock:
            self._done[index] = 1.0
            self._final[index] = True

    def _percent(self) -> int:
        # The sum of binary fractions may fall a hair short of a whole percent.
        return min(100, int(100.0 * sum(self._done) / len(self._done) + 1e-9))

    def _is_due(self, percent: int) -> bool:
        if self._last is None:
            return True
        last_at, last_percent = self._last
        return self._clock() - last_at >= self._min_interval_s and percent - last_percent >= self._min_percent

    def _send(self, event: ProgressEvent) -> None:
        self._last = (self._clock(), event.progress)
        if (known := self._previews.get(event.index)) is not None:
            event = replace(event, preview_url=known[0], preview_step=known[1])
        for sink in self._sinks:
            try:
                sink(event)
            except Exception:
                logger.warning("a progress sink failed; the job goes on", exc_info=True)
