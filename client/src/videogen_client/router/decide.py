"""Which backend makes a video: the candidates of the tier in their order, and the reason why not for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .backend import Backend, Estimate
from .breaker import BreakerState
from .jobs import Attempt
from .policy import Policy
from .request import VideoRequest


@dataclass(frozen=True)
class Choice:
    """`why_not` is None for a candidate that may be asked; `is_passing`: the reason may be gone in a moment."""

    backend: str
    estimate: Estimate
    why_not: str | None = None
    is_passing: bool = False

    def within(self, left_usd: float) -> Choice:
        """With what is left of the tenant's budget for the day."""
        if self.why_not is not None or self.estimate.usd_high <= left_usd:
            return self
        why_not = (
            f"may cost {self.estimate.usd_high:.4f} USD, {left_usd:.4f} are left of the tenant's budget for the day"
        )
        return replace(self, why_not=why_not)

    def entry(self, *, chosen: bool, why: str | None = None) -> dict[str, Any]:
        """Of a route."""
        cost = f"{self.estimate.usd_low:.4f} to {self.estimate.usd_high:.4f} USD"
        time = f"{self.estimate.seconds_low:.0f} to {self.estimate.seconds_high:.0f} s"
        fits = (
            f"the first candidate that fits: {cost}, {time}"
            if chosen
            else f"a candidate before it fits: {cost}, {time}"
        )
        return {"backend": self.backend, "chosen": chosen, "why": why or self.why_not or fits}


def weigh(
    policy: Policy,
    backends: Mapping[str, Backend],
    request: VideoRequest,
    *,
    breakers: Mapping[str, BreakerState],
    now: float,
    deadline_at: float,
    attempts: Sequence[Attempt] = (),
    retry_s: float = 0.0,
) -> list[Choice]:
    """The candidates of the request's tier: those asked least often first, then as the policy has them.

    One that failed is asked again `retry_s` after that, twice as long each time.
    """
    tier = policy.tiers[request.tier]
    limits = [each for each in (request.max_cost_usd, tier.max_cost_usd) if each is not None]
    left_usd = None if not limits else min(limits) - sum(each.cost_usd or 0.0 for each in attempts)
    tries = {name: [each for each in attempts if each.backend == name] for name in tier.candidates}
    choices = []
    for name in sorted(tier.candidates, key=lambda each: len(tries[each])):
        estimate = backends[name].estimate(request)
        why_not = backends[name].capabilities().why_not(request)
        if why_not is None and len(tries[name]) >= tier.tries:
            why_not = f"was asked {tier.tries} times"
        if why_not is None and not math.isfinite(estimate.usd_high):
            why_not = "has no price for this size and sound"
        if why_not is None and left_usd is not None and estimate.usd_high > left_usd:
            why_not = f"may cost {estimate.usd_high:.4f} USD, {max(0.0, left_usd):.4f} are left of the most for the job"
        if why_not is None and now + estimate.seconds_low > deadline_at:
            left_s = max(0.0, deadline_at - now)
            why_not = f"takes {estimate.seconds_low:.0f} s at least, {left_s:.0f} s are left until the deadline"
        passing = None
        if why_not is None:
            passing = breakers.get(name, BreakerState()).why_not(policy.breaker, now)
            if passing is None and tries[name]:
                again_at = (tries[name][-1].ended_at or 0.0) + retry_s * 2 ** (len(tries[name]) - 1)
                passing = f"failed, and is asked again in {again_at - now:.1f} s" if now < again_at else None
        choices.append(Choice(name, estimate, why_not or passing, is_passing=passing is not None))
    return choices
