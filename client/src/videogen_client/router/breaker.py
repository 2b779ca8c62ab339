"""The circuit breaker of one backend: opens by the rate of failures, then lets one probe through.

closed -> open         enough of the last outcomes failed
open -> half_open      `open_s` later, for one job: the probe
half_open -> closed    the probe succeeded; earlier outcomes count no more
half_open -> open      the probe failed

The state is in the store, so that router processes share it and a restarted one finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .policy import Breaker


@dataclass(frozen=True)
class BreakerState:
    """`since` is when it began, in seconds of the epoch. `probe` is the attempt that decides, where it is half open."""

    name: Literal["closed", "open", "half_open"] = "closed"
    since: float = 0.0
    probe: str | None = None

    def why_not(self, rules: Breaker, now: float) -> str | None:
        if self.name == "half_open":
            return "its breaker is half open: a probe is under way"
        if self.name == "open" and now < self.since + rules.open_s:
            return f"its breaker is open for {self.since + rules.open_s - now:.0f} s more"
        return None

    def after(
        self, rules: Breaker, attempt: str, outcomes: Sequence[bool], now: float, *, is_success: bool
    ) -> BreakerState:
        """What an outcome of `attempt` makes of it. `outcomes` are the latest ones since `since`, with that one."""
        if self.name == "half_open":
            if self.probe != attempt:
                return self
            return BreakerState("closed" if is_success else "open", now)
        failed = sum(not each for each in outcomes)
        if self.name == "open" or len(outcomes) < rules.min_calls or failed < rules.failure_rate * len(outcomes):
            return self
        return BreakerState("open", now)
