"""Progress events on their way to the webhook: the latest wins, and none ever delays the work."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

Status = Literal["queued", "loading", "generating", "encoding", "uploading", "preparing", "training", "sampling"]


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """`progress` is whole percent of the job, `index` the video whose stage is reported.

    `step` of `steps` is known while the video is generated, and with it the seconds until its steps are done.
    `preview_url` is where the video's last preview is, and `preview_step` the step that it shows.
    """

    progress: int
    status: Status
    index: int
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    preview_url: str | None = None
    preview_step: int | None = None


class ProgressSender:
    """Sends progress events from one thread of its own: the latest wins, one at a time, none after a final event.

    `post` sends one event and may block for a few seconds; `offer` never does. Between the starts of two sends at
    least `every_s` pass, however late the response to an earlier one was; a new preview does not wait for that.
    """

    def __init__(self, post: Callable[[ProgressEvent], None], *, every_s: float = 2.0) -> None:
        self._post = post
        self._every_s = every_s
        self._shown: tuple[int, int] | None = None  # the last preview: its video and step
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
            if event.preview_step is not None and (event.index, event.preview_step) != self._shown:
                self._shown = (event.index, event.preview_step)
                self._earliest = 0.0
                self._changed.notify_all()
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
            except Exception:
                logger.warning("a progress event could not be sent; the job goes on", exc_info=True)
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
