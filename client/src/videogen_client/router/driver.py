"""What all jobs that a process drives share."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import metrics
from .backend import Backend, Clip
from .breaker import BreakerState
from .decide import Choice, weigh
from .jobs import Attempt, Job
from .policy import Policy
from .store import Store

# Why a clip is not good enough; None where it is.
Gate = Callable[[Backend, Clip, Job], Awaitable[str | None]]

_LOOKS_PER_S = 50
LOOKS_AT_ONCE = 16  # at a backend: more of them would wait for each other until none has its answer in time


@dataclass(frozen=True)
class RouterTiming:
    """Seconds, all of them. `submit_s` and `read_s` bound a call of a backend; a job belongs to a process for
    `lease_s`. What was refused is asked again after `retry_s`; what waits is looked at every `pause_s`; a service
    that does not list a job `find_s` after its submission has not taken it.
    """

    submit_s: float = 30.0
    read_s: float = 30.0
    lease_s: float = 90.0
    retry_s: float = 2.0
    pause_s: float = 1.0
    find_s: float = 15.0

    def __post_init__(self) -> None:
        if self.lease_s <= self.submit_s:
            raise ValueError("lease_s is longer than submit_s: nobody may take a job over while it is submitted")


@dataclass(frozen=True)
class Decision:
    """`why_not` has the reasons that only the store knows: a budget, a breaker whose probe is under way."""

    choices: list[Choice]
    attempt: Attempt | None
    why_not: dict[str, str]
    took_s: float

    @property
    def is_passing(self) -> bool:
        """There may be a candidate in a moment."""
        return any(each.is_passing for each in self.choices) or any("breaker" in each for each in self.why_not.values())


class Driver:
    """`in_thread` runs a call of the store beside the event loop."""

    def __init__(
        self,
        policy: Policy,
        backends: Mapping[str, Backend],
        store: Store,
        in_thread: Callable[..., Awaitable[Any]],
        gate: Gate,
        timing: RouterTiming,
        clock: Callable[[], float],
        owner: str,
    ) -> None:
        self.policy = policy
        self.backends = backends
        self.store = store
        self.in_thread = in_thread
        self.gate = gate
        self.timing = timing
        self.clock = clock
        self.owner = owner
        self.in_flight = 0
        self.turns: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(LOOKS_AT_ONCE))

    def decide(self, job: Job) -> Decision:
        """Chooses a backend and writes the attempt. Blocks: it belongs into a thread. Raises LeaseLost."""
        began = time.perf_counter()
        choices: list[Choice] = []
        why_not: dict[str, str] = {}

        def choose(breakers: Mapping[str, BreakerState]) -> list[tuple[str, float]]:
            choices[:] = weigh(
                self.policy,
                self.backends,
                job.request,
                breakers=breakers,
                now=self.clock(),
                deadline_at=job.deadline_at,
                attempts=job.attempts,
                retry_s=self.timing.retry_s,
            )
            return [(each.backend, each.estimate.usd_high) for each in choices if each.why_not is None]

        attempt = self.store.begin(job, self.owner, self.timing.lease_s, choose, why_not.__setitem__)
        took_s = time.perf_counter() - began
        metrics.DECISION_S.observe(took_s)
        return Decision(choices, attempt, why_not, took_s)

    def between_looks_s(self, poll_s: float) -> float:
        """Longer where there are many jobs: the requests are bounded, not their number times that of the jobs."""
        return max(poll_s, self.in_flight / _LOOKS_PER_S)
