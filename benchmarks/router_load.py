"""What the router costs, and what its breaker saves.

    python -m benchmarks.router_load

Load: 500 jobs in flight in one process, in waves, at a service in another process: seconds of a decision with its
writing, memory after each wave. Breaker: a cheap service that is down, fails at 30% or is slow for half of the time,
and a dear one, without a breaker, with one that opens at one failure, and with the router's by the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from tests.kits.router_kit import backend_table, policy_of, price_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble
from videogen_client.router import Job, RouterTiming

TIMING = RouterTiming(submit_s=30.0, read_s=30.0, lease_s=90.0, retry_s=0.1, pause_s=0.05)
BREAKERS: dict[str, dict[str, Any]] = {
    "none": {"min_calls": 1_000_000},
    "one strike": {"window": 1, "min_calls": 1, "failure_rate": 1.0, "open_s": 2.0},
    "by rate": {"window": 20, "min_calls": 5, "failure_rate": 0.5, "open_s": 2.0},
}
ILLS = {"down": Order("failed", 2.0), "flaky": Order("failed", 0.4), "slow": Order("completed", 30.0)}
SHARE_FLAKY = 0.3
ARRIVALS_PER_S = 15
CHEAP_USD, DEAR_USD = 0.1, 0.4
BAD_S, PER_SECOND, DEADLINE_S, PATIENCE_S = 10.0, 3, 6.0, 2.5


@dataclass(frozen=True)
class Load:
    """Milliseconds of a decision, and megabytes of the process after each wave."""

    jobs: int
    waves: int
    decision_p50_ms: float
    decision_p95_ms: float
    most_in_flight: int
    completed: int
    rss_mb: list[float]
    seconds: float


@dataclass(frozen=True)
class Outage:
    """`late` jobs ended without a video. `wasted` attempts went to the cheap service and brought none."""

    ill: str
    breaker: str
    jobs: int
    late: int
    wasted: int
    on_the_cheap_one: int
    median_s: float
    p95_s: float
    usd: float


class _Decisions(logging.Handler):
    """Collects the time of each decision from the router's own log lines."""

    def __init__(self) -> None:
        super().__init__()
        self.took_ms: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "decided in" in str(record.msg) and isinstance(record.args, tuple):
            self.took_ms.append(float(str(record.args[3])))


def _serve(pipe: Connection, seconds: float) -> None:
    with FalDouble(Order(seconds=seconds)) as fal:
        pipe.send(fal.url)
        pipe.recv()


@contextmanager
def _service(seconds: float) -> Iterator[FalDouble]:
    """A double in another process, as far as its address goes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, seconds))
    process.start()
    shown = FalDouble()
    shown.url = here.recv()
    try:
        yield shown
    finally:
        here.send(None)
        process.join()


async def load(jobs: int, waves: int, folder: Path) -> Load:
    decisions, began = _Decisions(), time.monotonic()
    log = logging.getLogger("videogen_client.router")
    log.addHandler(decisions)
    log.setLevel(logging.INFO)
    log.propagate = False
    rss_mb, most, completed = [], 0, 0
    with _service(jobs / ARRIVALS_PER_S + 5) as fal:
        table = backend_table(fal, poll_s=5.0)
        policy = policy_of(folder / "store", {"fal": table}, tier={"deadline_s": 150.0})
        async with router_of(policy, TIMING) as router:
            for wave in range(waves):

                async def submit(number: int, wave: int = wave) -> str:
                    await asyncio.sleep(number / ARRIVALS_PER_S)
                    return await router.submit({"prompt": f"clip {wave} {number}", "tier": "draft"})

                ids = await asyncio.gather(*(submit(number) for number in range(jobs)))
                most = max(most, router.in_flight)
                ended = await asyncio.gather(*(router.result(each, timeout_s=600) for each in ids))
                completed += sum(each.status == "completed" for each in ended)
                rss_mb.append(round(psutil.Process().memory_info().rss / 1e6, 1))
    log.removeHandler(decisions)
    spread = statistics.quantiles(decisions.took_ms, n=20)
    took_s = round(time.monotonic() - began, 1)
    return Load(jobs, waves, round(spread[9], 2), round(spread[18], 2), most, completed, rss_mb, took_s)


async def outage(ill: str, breaker: str, seed: int, folder: Path) -> Outage:
    """Jobs come at an even rate; the cheap service is ill for the first half of the time."""
    dice = random.Random(seed)
    count = int(2 * BAD_S * PER_SECOND)
    with FalDouble(Order(seconds=0.3)) as cheap, ReplicateDouble(Order(seconds=1.0)) as dear:
        tables = {
            "cheap": backend_table(cheap, patience_s=PATIENCE_S, poll_s=0.2),
            "dear": backend_table(dear, poll_s=0.2),
        }
        prices = [price_of("cheap", CHEAP_USD), price_of("dear", DEAR_USD)]
        tier = {"deadline_s": DEADLINE_S, "tries": 1}
        policy = policy_of(folder / f"{ill} {breaker}", tables, tier=tier, prices=prices, breaker=BREAKERS[breaker])
        async with router_of(policy, TIMING) as router:

            async def one(number: int) -> Job:
                await asyncio.sleep(number / PER_SECOND)
                is_bad = number < count / 2 and (ill != "flaky" or dice.random() < SHARE_FLAKY)
                cheap.default = ILLS[ill] if is_bad else Order(seconds=0.3)
                return await router.result(await router.submit({"prompt": str(number), "tier": "draft"}), timeout_s=60)

            jobs = await asyncio.gather(*(one(number) for number in range(count)))
    took_s = sorted((each.ended_at or 0.0) - each.created_at for each in jobs)
    attempts = [each for job in jobs for each in job.attempts]
    return Outage(
        ill=ill,
        breaker=breaker,
        jobs=count,
        late=sum(job.status != "completed" for job in jobs),
        wasted=sum(each.backend == "cheap" and each.state != "completed" for each in attempts),
        on_the_cheap_one=sum(each.backend == "cheap" and each.state == "completed" for each in attempts),
        median_s=round(statistics.median(took_s), 2),
        p95_s=round(took_s[int(0.95 * count)], 2),
        usd=round(sum(job.spent_usd for job in jobs), 2),
    )


async def outages(seed: int, folder: Path) -> dict[str, Any]:
    found = [asdict(await outage(ill, breaker, seed, folder)) for ill in ILLS for breaker in BREAKERS]
    return {"seed": seed, "outages": found}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_load", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["load", "breaker"], help="one of the two measurements")
    chosen = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("videogen_client.router").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.only != "breaker":
            found = asdict(asyncio.run(load(chosen.jobs, chosen.waves, Path(folder))))
            print(found, reporting.write(reporting.RESULTS, "router-load", found, "httpx", "sqlalchemy"))
        if chosen.only != "load":
            logging.getLogger("videogen_client.router").setLevel(logging.ERROR)
            found = asyncio.run(outages(chosen.seed, Path(folder)))
            print(found, reporting.write(reporting.RESULTS, "router-breaker", found, "httpx", "sqlalchemy"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
