"""One attempt to deliver an event, how long a receiver is waited for, and the round that empties the outbox.

2xx is success, 410 ends it for good, and so does an address that may not be reached. Every other status is a failure
that is tried again, 3xx (never followed) and 4xx too: a receiver that is being deployed, or that is misconfigured for a
moment, returns 302, 401 or 404.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, Protocol

from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

from worker.base import metrics
from worker.base.errors import Cancelled, InputBlocked, InvalidRequest
from worker.delivery.webhooks import envelopes
from worker.delivery.webhooks.letter import Arrivals, Letter, Outcome, Round
from worker.delivery.webhooks.outbox import Outbox
from worker.net import PostAnswer, PostFailed

_GONE = 410


class Transport(Protocol):
    """The part of `net.Opener` that webhooks use."""

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        stop: threading.Event | None = None,
    ) -> PostAnswer: ...


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a receiver is waited for.

    A final event has `event_s` for its attempts of `attempt_s` at most and the `waits_s` between them; an attempt that
    could take less than `least_s` is not begun. Failures in a row of one job have `job_s`. Once a shutdown's grace is
    over an event has `last_s`. `close_s` is how long the end of a channel waits.
    """

    waits_s: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    attempt_s: float = 15.0
    event_s: float = 35.0
    job_s: float = 60.0
    least_s: float = 0.5
    last_s: float = 1.0
    progress_s: float = 3.0
    progress_every_s: float = 2.0
    close_s: float = 5.0


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Postman:
    """Makes one attempt to deliver a letter, signed again. Never raises."""

    opener: Transport
    secrets: Sequence[str]
    stop: threading.Event
    kind: Literal["final", "progress"] = "final"

    def __call__(self, letter: Letter, timeout_s: float) -> Outcome:
        outcome = self._attempt(letter, timeout_s)
        metrics.webhook_attempt(self.kind, outcome.kind)
        return outcome

    def _attempt(self, letter: Letter, timeout_s: float) -> Outcome:
        now = datetime.now(UTC)
        try:
            signed = envelopes.headers(letter.body, event_id=letter.event_id, now=now, secrets=self.secrets)
            answer = self.opener.post(letter.url, letter.body.encode(), signed, timeout_s=timeout_s, stop=self.stop)
        except (InputBlocked, InvalidRequest) as failure:
            return Outcome("blocked", failure.message)
        except PostFailed as failure:
            return Outcome("failed", f"the receiver {failure.reason}")
        except Cancelled:
            return Outcome("stopped", "the worker is stopping")
        except Exception as failure:  # noqa: BLE001 - whatever it is, it may not fail a job; its text may hold the URL
            return Outcome("failed", type(failure).__name__)
        if 200 <= answer.status < 300:
            return Outcome("delivered")
        reason = f"the receiver answered HTTP {answer.status}"
        if answer.status == _GONE:
            return Outcome("gone", reason)
        return Outcome("failed", reason, retry_after_s=_retry_after_s(answer.headers), answered=True)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    """What the receiver's Retry-After asks for, in seconds or as a date: at most 6 hours, 0 where it makes no sense."""
    text = next((value for name, value in headers.items() if name.lower() == "retry-after"), None)
    if text is None:
        return 0.0
    try:
        return Retry().parse_retry_after(text)
    except (InvalidHeader, ValueError, OverflowError):
        return 0.0


async def redeliver(
    outbox: Outbox,
    *,
    opener: Transport,
    secrets: Sequence[str],
    journal: Arrivals | None = None,
    budget_s: float = 30.0,
    patience: Patience = PATIENCE,
) -> None:
    """Send what earlier jobs, and other workers, could not deliver, each event once.

    Runs in a thread of its own for about `budget_s`: start it as a task beside a job, never before one. Cancelling it
    ends the attempt under way; what is left stays.
    """
    stop = threading.Event()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="webhook-outbox")

    def drain() -> None:
        outbox.sweep()
        ends_at = time.monotonic() + budget_s
        send = Postman(opener, secrets, stop)
        outbox.drain(Round(send, stop, ends_at, patience.attempt_s, patience.least_s, arrivals=journal))

    draining = thread.submit(copy_context().run, drain)
    thread.shutdown(wait=False)
    try:
        await asyncio.wrap_future(draining)
    finally:
        stop.set()
