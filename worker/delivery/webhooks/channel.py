"""Telling a job's receiver: progress now and then, each final event at least once, under one event id.

A final event is tried 5 times within 35 s (`worker.delivery.webhooks.postman` says what counts as success).
`Retry-After` is obeyed: what it puts off beyond the 35 s waits in the outbox until then, as does everything that could
not be delivered.

A receiver that stays silent cannot hold a job up: once an event has used up its attempts, each later one of the job
gets a single attempt, in its place behind those that wait, and after 60 s of failure in a row none. Nothing here
raises into the job. Log lines name events by their id, never the URL or the body.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import Any, Literal

from worker.base import timing
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.outbox import Letter, Outbox, Outcome, Told
from worker.delivery.webhooks.postman import PATIENCE, Patience, Poster, Postman
from worker.delivery.webhooks.progress_sender import ProgressEvent, ProgressSender

_log = logging.getLogger(__name__)

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
        opener: Poster,
        secrets: Sequence[str],
        outbox: Outbox | None,
        journal: Told | None = None,
        patience: Patience = PATIENCE,
    ) -> None:
        self._url = url
        self._events = events
        self._job_id = job_id
        self._total = total
        self._payload_digest = payload_digest
        self._outbox = outbox
        self._journal = journal
        self._patience = patience
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
        """Tell that video `index` is delivered. True when the event is known to have arrived."""

        def envelope(event_id: str, now: datetime) -> dict[str, Any]:
            return envelopes.completed(result, event_id=event_id, timestamp=now, index=index, total=self._total)

        return await self._in_turn(index, "completed", envelope)

    async def failed(self, index: int | None, failure: Mapping[str, Any], http_code: int, message: str) -> bool:
        """Tell that video `index`, or the whole job (None), failed. True when the event is known to have arrived."""

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
            telling = self._finals.submit(copy_context().run, self._tell, index, kind, envelope)
        except RuntimeError:
            _log.error("a %s event came after the end of its channel and is not sent", kind)
            return False
        # Who awaits may be cancelled; the event is told, or at least put into the outbox, all the same.
        return await asyncio.shield(asyncio.wrap_future(telling))

    def _tell(self, index: int | None, kind: Kind, envelope: Envelope) -> bool:
        self._progress.finish(index, wait_s=self._patience.progress_s + 1.0)
        if self._url is None or kind not in self._events or self._over:
            return False
        event_id = envelopes.final_event_id(self._job_id, self._payload_digest, index, kind)
        # A failure is tried anew on redelivery and may end otherwise: it is always told.
        if kind == "completed" and self._is_told(event_id):
            return True
        began, arrived = time.perf_counter(), False
        try:
            arrived = self._deliver(self._letter(self._url, event_id, envelope))
        except Exception as failure:  # noqa: BLE001 - a webhook never fails a job; the text may hold the URL or a prompt
            _log.error("webhook %s could not be sent: %s", event_id, type(failure).__name__)
        timing.took(index, "webhook", time.perf_counter() - began, event=kind, arrived=arrived)
        return arrived

    def _deliver(self, letter: Letter) -> bool:
        outbox = self._outbox
        place = outbox.put(letter) if outbox is not None else None
        if outbox is None or place is None:
            return self._conclude(letter, self._attempts(letter), kept=False)
        if not outbox.is_first(place):
            return self._deliver_in_line(letter, outbox)
        try:
            with outbox.claim(place) as kept:
                # The letter of an earlier delivery of the job has the same id; its own bytes go out again.
                outcome = self._attempts(letter if kept is None else kept)
                outbox.settle(place, letter if kept is None else kept, outcome)
        except (FileNotFoundError, BlockingIOError):
            return self._is_told(letter.event_id)  # another worker sends it, or just has
        return self._conclude(letter, outcome, kept=True)

    def _deliver_in_line(self, letter: Letter, outbox: Outbox) -> bool:
        """Earlier events of the job wait: send them and then this one, up to the first that fails."""
        began, stop = time.monotonic(), self._stop
        outcome = outbox.drain(
            Postman(self._opener, self._secrets, stop),
            told=self._journal,
            budget_s=self._budget_s(),
            attempt_s=self._patience.attempt_s,
            job_id=self._job_id,
            stop=stop,
        ).get(letter.event_id)
        self._note(outcome is not None, time.monotonic() - began)
        if outcome is None:
            _log.warning("webhook %s is kept in the outbox, behind earlier events of its job", letter.event_id)
            return False
        self._end_if_unwanted(outcome)
        return outcome.kind == "delivered"

    def _attempts(self, letter: Letter) -> Outcome:
        if letter.not_before > time.time():
            return Outcome("failed", "the receiver asked to be left alone")
        # The event before the flag: who reads of no hurry after it holds the event that a hurry sets.
        began, stop = time.monotonic(), self._stop
        deadline = began + self._budget_s()
        send = Postman(self._opener, self._secrets, stop)
        outcome = Outcome("failed", "not tried after earlier failures")
        waits_s = () if self._silent or self._hurried else self._patience.waits_s
        for number, wait_s in enumerate((0.0, *waits_s), start=1):
            pause_s = max(wait_s * random.uniform(0.75, 1.0), outcome.retry_after_s)
            if time.monotonic() + pause_s + self._patience.least_s > deadline or stop.wait(pause_s):
                break
            left_s = deadline - time.monotonic()
            outcome = send(letter, min(self._patience.attempt_s, left_s))
            if outcome.settled:
                break
            _log.info("webhook %s, attempt %d: %s", letter.event_id, number, outcome.reason)
        self._note(outcome.settled, time.monotonic() - began)
        return outcome

    def _budget_s(self) -> float:
        """Seconds that an event has which is begun now."""
        if not self._hurried:
            return min(self._patience.event_s, self._left_s)
        return 0.0 if self._silent else min(self._patience.last_s, self._left_s)

    def _note(self, arrived: bool, seconds: float) -> None:
        self._silent = not arrived
        self._left_s = self._patience.job_s if arrived else max(0.0, self._left_s - seconds)

    def _conclude(self, letter: Letter, outcome: Outcome, *, kept: bool) -> bool:
        if outcome.kind == "failed":
            fate = "kept in the outbox" if kept else "lost"
            _log.warning("webhook %s is undelivered and %s: %s", letter.event_id, fate, outcome.reason)
            return False
        self._end_if_unwanted(outcome)
        if outcome.kind != "blocked" and self._journal is not None:
            self._journal.record_told(letter.job_id, letter.event_id)
        return outcome.kind == "delivered"

    def _end_if_unwanted(self, outcome: Outcome) -> None:
        if outcome.kind in ("blocked", "gone") and not self._over:
            self._over = True
            _log.warning("no more webhooks for this job: %s", outcome.reason)

    def _is_told(self, event_id: str) -> bool:
        return self._journal is not None and self._journal.is_told(self._job_id, event_id)

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
