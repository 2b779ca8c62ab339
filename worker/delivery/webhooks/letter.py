"""A final event as it waits and is sent, what became of an attempt, and the round in which it is tried."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)


class Letter(BaseModel):
    """One final event as it is sent: `body` is the text that is signed.

    `created_at` and `not_before` are seconds since the epoch; before the latter the receiver wants no attempt.
    """

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)

    job_id: str
    event_id: str
    url: str = Field(repr=False)
    body: str = Field(repr=False)
    created_at: float
    not_before: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a letter in one round.

    `delivered`: 2xx. `gone`: 410, the receiver wants no more. `blocked`: the address may not be reached. `stopped`: the
    worker ended the attempt. `waits`: its time has not come, or another worker is sending it. `failed`: anything else;
    `retry_after_s` is what the receiver asked for, 0 for nothing; `answered`: it responded, with that failure.
    """

    kind: Literal["delivered", "gone", "blocked", "failed", "stopped", "waits"]
    reason: str = ""
    retry_after_s: float = 0.0
    answered: bool = False

    @property
    def settled(self) -> bool:
        """Nothing more is to be sent."""
        return self.kind in ("delivered", "gone", "blocked")


Send = Callable[[Letter, float], Outcome]
"""Makes one attempt that takes at most so many seconds. Raises nothing."""


class Arrivals(Protocol):
    """Remembers which events need not be sent again (the journal)."""

    def has_arrived(self, job_id: str, event_id: str) -> bool: ...

    def record_arrived(self, job_id: str, event_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Round:
    """Attempts to deliver one letter or several, until `ends_at` of `clock`.

    A letter gets one attempt and one more after each of `waits_s` (shortened at random by up to a quarter), or after
    the `Retry-After` of its receiver where that is longer. An attempt takes at most `attempt_s`, and none begins that
    could take less than `least_s`, nor after `stop`. `arrivals` records each event that need not be sent again.
    """

    send: Send
    stop: threading.Event
    ends_at: float
    attempt_s: float
    least_s: float = 0.0
    waits_s: tuple[float, ...] = ()
    arrivals: Arrivals | None = None
    clock: Callable[[], float] = time.monotonic

    def is_over(self, pause_s: float = 0.0) -> bool:
        """No attempt may begin any more, `pause_s` from now."""
        return self.stop.is_set() or self.clock() + pause_s + self.least_s >= self.ends_at

    def deliver(self, letter: Letter) -> Outcome:
        """Try until the letter is settled, its attempts are used up or the round is over. Raises nothing."""
        outcome = Outcome("failed", "not tried after earlier failures")
        for number, wait_s in enumerate((0.0, *self.waits_s), start=1):
            pause_s = max(wait_s * random.uniform(0.75, 1.0), outcome.retry_after_s)
            if self.is_over(pause_s) or self.stop.wait(pause_s):
                break
            outcome = self.send(letter, min(self.attempt_s, self.ends_at - self.clock()))
            if outcome.kind != "failed":
                break
            logger.info("webhook %s, attempt %d: %s", letter.event_id, number, outcome.reason)
        if self.arrivals is not None and outcome.kind in ("delivered", "gone"):
            self.arrivals.record_arrived(letter.job_id, letter.event_id)
        return outcome
