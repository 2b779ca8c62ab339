"""The router against six services that fail at random: is a video paid twice, is one lost, is a budget passed?

    python -m benchmarks.router --runs 1000

Submissions are refused, cut off, carried out with their answers lost or late; questions fail; jobs fail, hang, refuse
to be cancelled, end late; callers cancel; webhooks come twice. The services are doubles on loopback that speak to the
official SDKs. Exits 1 where a video was made twice for one job, was made and not delivered, or cost more than it might.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from tests.kits.router_kit import backend_table, policy_of, router_of
from tests.kits.service_double import Fault, Order, ServiceDouble
from tests.kits.services import FalDouble, GoogleDouble, ReplicateDouble, RunPodDouble, RunwayDouble, VideosDouble
from videogen_client.router import Job, NoCandidate, Policy, Router, RouterTiming

AT_ONCE = 40
USD = 0.10  # of a video, at every service
MOST_USD = 0.30  # of a job
# Of each tenant, for a run: a fifth of the runs are of the small one, and would cost four times as much.
BUDGETS_USD = {"small": 0.005, "large": 0.075}
DEADLINE_S = 6.0
TIERS = ("preview", "draft", "standard", "premium")  # each begins with another service
TIMING = RouterTiming(submit_s=1.5, read_s=2.0, lease_s=8.0, retry_s=0.02, pause_s=0.02, find_s=0.2)
_SUBMIT_FAULTS: list[Fault | None] = ["cut", "cut_after", "cut_after", "late", 429, 503, 500, 502, 401, 422]
_READ_FAULTS: list[Fault | None] = ["cut", "cut_after", 500, 503, 429]


@dataclass
class Figures:
    """`unknown` are jobs whose end could not be known: each counts as paid. `lost` videos were made for a job that
    ended otherwise than completed, cancelled or unknown, or has not ended.
    """

    runs: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    unknown: int = 0
    refused: int = 0
    fell_back: int = 0
    requests: int = 0
    paid_twice: int = 0
    lost: int = 0
    over_budget: int = 0
    over_the_most_of_a_job: int = 0
    seconds: float = 0.0
    attempts: dict[str, int] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        return self.paid_twice == self.lost == self.over_budget == self.over_the_most_of_a_job == 0


def doubles(dice: random.Random, runs: int, *, faulty: float = 0.4) -> dict[str, ServiceDouble]:
    """With a way for every job of so many runs; `faulty` is the share of the submissions that meet a fault."""
    made: dict[str, ServiceDouble] = {
        "own": RunPodDouble(),
        "videos": VideosDouble(keeps_keys=True),
        "replicate": ReplicateDouble(),
        "fal": FalDouble(),
        "runway": RunwayDouble(),
        "google": GoogleDouble(),
    }
    for double in made.values():
        double.submit_faults = [_fault(dice, _SUBMIT_FAULTS, faulty) for _ in range(3 * runs)]
        double.read_faults = [_fault(dice, _READ_FAULTS, 0.15) for _ in range(20 * runs)]
        double.plan = [_order(dice) for _ in range(2 * runs)]
        double.late_s = 2 * TIMING.submit_s
    return made


def _fault(dice: random.Random, faults: Sequence[Fault | None], share: float) -> Fault | None:
    return dice.choice(faults) if dice.random() < share else None


def _order(dice: random.Random) -> Order:
    outcome = dice.choices(["completed", "failed", "refused", "hang"], [70, 17, 5, 8])[0]
    seconds = dice.choice([0.02, 0.1, 0.3, 1.5])
    return Order(outcome, seconds, dice.choice(["always", "queued", "never"]))  # type: ignore[arg-type]


def policy_for(store: Path | str, services: Mapping[str, ServiceDouble], runs: int) -> Policy:
    tables = {}
    for name, double in services.items():
        more = {"on_lost": "resubmit"} if name == "videos" else {}
        tables[name] = backend_table(double, patience_s=1.2, **more)
    tenants = {tenant: {"budget_usd_per_day": usd * runs} for tenant, usd in BUDGETS_USD.items()}
    breaker = {"open_s": 0.3, "failure_rate": 0.7, "window_s": 5.0}
    names = list(tables)
    rules = {"deadline_s": DEADLINE_S, "max_cost_usd": MOST_USD, "tries": 1}
    tiers = {tier: {**rules, "candidates": names[turn + 1 :] + names[: turn + 1]} for turn, tier in enumerate(TIERS)}
    return policy_of(store, tables, usd=USD, tiers=tiers, tenants=tenants, breaker=breaker)


async def measure(runs: int, seed: int, folder: Path) -> Figures:
    dice, figures, began = random.Random(seed), Figures(runs=runs), time.monotonic()
    with contextlib.ExitStack() as stack:
        services = doubles(dice, runs)
        for double in services.values():
            stack.enter_context(double)
        async with router_of(policy_for(folder / "router.sqlite3", services, runs), TIMING) as router:
            turns = asyncio.Semaphore(AT_ONCE)
            jobs = await asyncio.gather(
                *(_run(router, number, random.Random(f"{seed}-{number}"), turns) for number in range(runs))
            )
            await asyncio.sleep(2 * TIMING.submit_s + 1.6)  # what is under way at the services ends
        judge(figures, [each for each in jobs if each is not None], services)
    figures.refused = sum(each is None for each in jobs)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


async def _run(router: Router, number: int, dice: random.Random, turns: asyncio.Semaphore) -> Job | None:
    """None where the router refused the request: a budget is spent."""
    tenant = "small" if dice.random() < 0.2 else "large"
    request = {"prompt": f"clip {number}", "tier": dice.choice(TIERS), "tenant": tenant}
    async with turns:
        try:
            job_id = await router.submit(request, key=f"job-{number}")
            if dice.random() < 0.2:  # a caller who did not get the answer
                assert await router.submit(request, key=f"job-{number}") == job_id
            if dice.random() < 0.05:
                await asyncio.sleep(dice.random())
                await router.cancel(job_id)
            if dice.random() < 0.3:
                await _webhooks(router, job_id)
            return await router.result(job_id, timeout_s=DEADLINE_S + 30)
        except NoCandidate:
            return None


async def _webhooks(router: Router, job_id: str) -> None:
    attempts = (await router.job(job_id)).attempts
    for attempt in (*attempts, *attempts):
        if attempt.handle is not None:
            await router.notice(attempt.id, attempt.handle)


def judge(figures: Figures, jobs: Sequence[Job], services: Mapping[str, ServiceDouble]) -> None:
    """Compares what the router says with what the services made."""
    made: Counter[str] = Counter()
    for double in services.values():
        for each in list(double.jobs.values()):
            made[each.fields["prompt"]] += each.state == "completed"
    states: Counter[str] = Counter()
    bills: Counter[str] = Counter()
    for job in jobs:
        count = made[job.request.prompt]
        setattr(figures, job.status, getattr(figures, job.status, 0) + 1)
        figures.fell_back += len({each.backend for each in job.attempts}) > 1
        figures.paid_twice += count > 1
        figures.lost += job.status == "open" or (job.status == "completed" and count == 0)
        figures.lost += job.status == "failed" and count > 0
        figures.over_the_most_of_a_job += count * USD > MOST_USD or job.spent_usd > MOST_USD + 1e-6
        bills[job.request.tenant] += count
        states.update(f"{each.backend} {each.state}" for each in job.attempts)
    figures.over_budget = sum(bills[tenant] * USD > usd * figures.runs + 1e-6 for tenant, usd in BUDGETS_USD.items())
    figures.requests = sum(double.requests for double in services.values())
    figures.attempts = dict(sorted(states.items()))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.router", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        figures = asyncio.run(measure(chosen.runs, chosen.seed, Path(folder)))
    result: dict[str, Any] = {"seed": chosen.seed, **asdict(figures)}
    print(reporting.write(reporting.RESULTS, "router", result, "httpx", "sqlalchemy"))
    print(figures)
    return 0 if figures.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
