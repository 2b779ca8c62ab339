"""What all jobs that a process drives share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .backend import Backend, Clip
from .jobs import Job
from .policy import Policy
from .store import Store

# Why a clip is not good enough; None where it is.
Gate = Callable[[Backend, Clip, Job], Awaitable[str | None]]


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


class Driver:
    """`in_thread` runs a call of the store beside the event loop. `leased_until` is of `time.monotonic`."""

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
        self.leased_until = 0.0

    async def may_submit(self) -> None:
        """Waits until the lease outlasts a submission: nobody else takes the job while it is being submitted."""
        while self.leased_until - time.monotonic() < self.timing.submit_s:
            await asyncio.sleep(self.timing.pause_s)
