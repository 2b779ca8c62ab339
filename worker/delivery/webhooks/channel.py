"""The webhook of one job. The protocol:

- Progress is throttled: one event at a time and one every 2 s, the latest wins, none is tried again, and none is sent
  after the final event of its video.
- A final event is tried 5 times within 35 s, in order, under one event id; `Retry-After` is obeyed, 410 ends it. Once a
  receiver was silent, each later event of the job gets one attempt, and after 60 s of failure in a row none.
- With a secret, every attempt is signed again by Standard Webhooks (`worker.delivery.webhooks.envelopes`).
- A final event is put into the outbox before its first attempt and stays there until it has arrived.

Nothing here raises into the job. Log lines name events by their id, never the URL or the body.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Literal

from worker.base import timing
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.letter import Arrivals, Letter, Outcome, Round
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import PATIENCE, Patience, Postman, Transport
from worker.delivery.webhooks.progress_sender import ProgressEvent, ProgressSender

logger = logging.getLogger(__name__)

Kind = Literal["completed", "failed"]
Envelope = Callable[[str, datetime], dict[str, Any]]
"""Makes the envelope of a final event from its id and the time."""


class Channel:
    """The events of one job to its receiver. Does nothing where `url` is None or `events` leaves an event out.

    Final events go out one after the other in the order of the calls. An event that `journal` knows to have arrived
    is not sent again. Without an outbox, or where it cannot be written, an undelivered event is lost.
    """

    def __init__(
        self,
        *,
        url: str | None,
        events: frozenset[str],
        job_id: str,
        total: int,
        payload_digest: str,
        opener: Transport,
        secrets: Sequence[str],
        outbox: Outbox | None,
        journal: Arrivals | None = None,
        patience: Patience = PATIENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._events = events
        self._job_id = job_id
        self._total = total
        self._payload_digest = payload_digest
        self._outbox = outbox
        self._journal = journal
        self._patience = patience
        self._clock = clock
        self._opener = opener
        self._secrets = secrets
        self._stop = threading.Event()
        self._closed = False
        self._hurried = False
        self._progress = ProgressSender(self._send_progress, every_s=patience.progress_every_s)
        # A thread of its own: slow receivers must not take threads from uploads, and one thread keeps the order.
        self._finals = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webhook")
        self._over = False
        self._silent = False
        self._left_s = patience.job_s

    def progress(self, event: ProgressEvent) -> None:
        """Send `event` if nothing newer overtakes it. Thread-safe, returns at once."""
        if self._url is not None and "progress" in self._events and not self._over:
            self._progress.offer(event)

    async def completed(self, index: int, result: Mapping[str, Any]) -> bool:
        """Report that video `index` is delivered. True when the event is known to have arrived."""

        def envelope(event_id: str, now: datetime) -> dict[str, Any]:
            return envelopes.completed(result, event_id=event_id, timestamp=now, index=index, total=self._total)

        return await self._in_turn(index, "completed", envelope)

    async def failed(self, index: int | None, failure: Mapping[str, Any], http_code: int, message: str) -> bool:
        """Report that video `index`, or the whole job (None), failed. True when the event is known to have arrived."""

        def envelope(event_id: str, now: datetime) -> dict[str, Any]:
            return envelopes.failed(
                failure,
                http_code=http_code,
                message=message,
                event_id=event_id,
                timestamp=now,
                index=index,
                total=self._total,
            )

        return await self._in_turn(index, "failed", envelope)

    def hurry(self) -> None:
        """The worker's time is up: end the attempt under way, whose event stays in the outbox; returns at once.

        Each later event gets one attempt of `last_s`, and none after the first failure.
        """
        self._hurried = True
        under_way, self._stop = self._stop, threading.Event()
        under_way.set()

    async def close(self) -> None:
        """End the channel. A final event that is still under way stays in the outbox. Waits a few seconds at most."""
        if self._closed:
            return
        self._closed = True
        self._stop.set()
        closing = self._finals.submit(self._progress.close, wait_s=self._patience.close_s)
        self._finals.shutdown(wait=False)
        await asyncio.wait({asyncio.wrap_future(closing)}, timeout=self._patience.close_s)

    async def _in_turn(self, index: int | None, kind: Kind, envelope: Envelope) -> bool:
        try:
            sending = self._finals.submit(copy_context().run, self._send_final, index, kind, envelope)
        except RuntimeError:
            logger.error("a %s event came after the end of its channel and is not sent", kind)
            return False
        # The caller may be cancelled: the event is sent, or at least put into the outbox, all the same.
        return await asyncio.shield(asyncio.wrap_future(sending))

    def _send_final(self, index: int | None, kind: Kind, envelope: Envelope) -> bool:
        self._progress.finish(index, wait_s=self._patience.progress_s + 1.0)
        if self._url is None or kind not in self._events or self._over:
            return False
        event_id = envelopes.final_event_id(self._job_id, self._payload_digest, index, kind)
        # A failed video is tried again on redelivery and may end otherwise: its event is always sent.
        if kind == "completed" and self._has_arrived(event_id):
            return True
        began, arrived = time.perf_counter(), False
        try:
            arrived = self._deliver(self._letter(self._url, event_id, envelope))
        except Exception as failure:  # noqa: BLE001 - a webhook never fails a job; the text may hold the URL or a prompt
            logger.error("webhook %s could not be sent: %s", event_id, type(failure).__name__)
        timing.took(index, "webhook", time.perf_counter() - began, event=kind, arrived=arrived)
        return arrived

    def _deliver(self, letter: Letter) -> bool:
        """Send what waits for the receiver of this job, and then `letter`."""
        outbox = self._outbox
        place = None if outbox is None else outbox.put(letter)
        began, sending = self._clock(), self._round()
        outcomes = {} if outbox is None or place is None else outbox.drain(sending, of=letter)
        outcome = outcomes.get(letter.event_id)
        if (outcome is None or outcome.kind == "waits") and self._has_arrived(letter.event_id):
            return True  # another worker has just sent it
        is_kept = place is not None and place.exists()
        if outcome is None:  # no outbox, a damaged or expired letter of the same id, or a line that stands still
            outcome = Outcome("waits", "earlier events of its job wait too") if is_kept else sending.deliver(letter)
        self._note([*outcomes.values(), outcome], self._clock() - began)
        if not outcome.settled:
            fate = "kept in the outbox" if is_kept else "lost"
            logger.warning("webhook %s is undelivered and %s: %s", letter.event_id, fate, outcome.reason)
        self._end_if_unwanted(outcome)
        return outcome.kind == "delivered"

    def _round(self) -> Round:
        # The event before the flag: who reads of no hurry after it holds the event that a hurry sets.
        stop, patience = self._stop, self._patience
        budget_s = patience.event_s
        if self._hurried:
            budget_s = 0.0 if self._silent else patience.last_s
        return Round(
            Postman(self._opener, self._secrets, stop),
            stop,
            self._clock() + min(budget_s, self._left_s),
            patience.attempt_s,
            patience.least_s,
            waits_s=() if self._silent or self._hurried else patience.waits_s,
            arrivals=self._journal,
            clock=self._clock,
        )

    def _note(self, outcomes: Iterable[Outcome], seconds: float) -> None:
        """Remember whether the receiver is silent, and for how long it has been."""
        tried = [outcome for outcome in outcomes if outcome.kind != "waits"]
        if tried:
            self._silent = not all(outcome.settled for outcome in tried)
            self._left_s = max(0.0, self._left_s - seconds) if self._silent else self._patience.job_s

    def _end_if_unwanted(self, outcome: Outcome) -> None:
        if outcome.kind in ("blocked", "gone") and not self._over:
            self._over = True
            logger.warning("no more webhooks for this job: %s", outcome.reason)

    def _has_arrived(self, event_id: str) -> bool:
        return self._journal is not None and self._journal.has_arrived(self._job_id, event_id)

    def _send_progress(self, event: ProgressEvent) -> None:
        if self._url is None or self._over:
            return

        def envelope(event_id: str, now: datetime) -> dict[str, Any]:
            return envelopes.progress(event, job_id=self._job_id, event_id=event_id, timestamp=now, total=self._total)

        letter = self._letter(self._url, envelopes.progress_event_id(), envelope)
        send = Postman(self._opener, self._secrets, self._stop, "progress")
        self._end_if_unwanted(send(letter, self._patience.progress_s))

    def _letter(self, url: str, event_id: str, envelope: Envelope) -> Letter:
        now = datetime.now(UTC)
        body = envelopes.serialised(envelope(event_id, now))
        return Letter(job_id=self._job_id, event_id=event_id, url=url, body=body, created_at=now.timestamp())
