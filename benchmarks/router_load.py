"""What the router costs, and what its breaker saves.

    python -m benchmarks.router_load

Load: 500 jobs in flight in one process, in waves, at a service in another process: time of a decision with its
writing, how much of it is the commit and how much the CPU time of its thread, memory after each wave. Before that the
same decisions one after the other, with nothing else in the process, and the time that the disk takes for two pages.
With `--awake 0.1` the process is stopped for the rest of each second, as on a machine that has no time for it.

Breaker: a cheap service that is down, fails at 30% or is slow for half of the time, and a dear one, without a breaker,
with one that opens at one failure, and with the router's by the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from tests.kits.router_kit import backend_table, policy_of, price_of, router_of
from tests.kits.service_double import Order
from tests.kits.services import FalDouble, ReplicateDouble
from videogen_client.router import Job, RouterTiming, VideoRequest
from videogen_client.router.driver import Decision, Driver

TIMING = RouterTiming(submit_s=30.0, read_s=30.0, lease_s=90.0, retry_s=0.1, pause_s=0.05)
BREAKERS: dict[str, dict[str, Any]] = {
    "none": {"min_calls": 1_000_000},
    "one strike": {"window": 1, "min_calls": 1, "failure_rate": 1.0, "open_s": 2.0},
    "by rate": {"window": 20, "min_calls": 5, "failure_rate": 0.5, "open_s": 2.0},
}
ILLS = {"down": Order("failed", 2.0), "flaky": Order("failed", 0.4), "slow": Order("completed", 30.0)}
SHARE_FLAKY = 0.3
ARRIVALS_PER_S = 15
SYNCS = 100
CHEAP_USD, DEAR_USD = 0.1, 0.4
BAD_S, PER_SECOND, DEADLINE_S, PATIENCE_S = 10.0, 3, 6.0, 2.5


@dataclass(frozen=True)
class Load:
    """Milliseconds of a decision, and megabytes of the process after each wave. `cpu_share` is what the process had of
    a core. `alone`: without other work in the process.
    """

    jobs: int
    waves: int
    decision_p50_ms: float
    decision_p95_ms: float
    decision_commit_p50_ms: float
    decision_cpu_p50_ms: float
    alone_p50_ms: float
    alone_commit_p50_ms: float
    alone_cpu_p50_ms: float
    disk_sync_p50_ms: float
    cpu_share: float
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


class _Decisions:
    """Times the decisions of a driver on SQLite, which has one thread for them."""

    def __init__(self, driver: Driver) -> None:
        self._decide = driver.decide
        dialect = driver.store._engine.dialect
        self._commit = dialect.do_commit
        dialect.do_commit = self._timed_commit  # type: ignore[method-assign, assignment]
        self._last_commit_ms = 0.0
        self.took_ms: list[float] = []
        self.commit_ms: list[float] = []
        self.cpu_ms: list[float] = []

    def __call__(self, job: Job) -> Decision:
        began = time.thread_time()
        decision = self._decide(job)
        self.cpu_ms.append(1000 * (time.thread_time() - began))
        self.took_ms.append(1000 * decision.took_s)
        self.commit_ms.append(self._last_commit_ms)
        return decision

    def _timed_commit(self, connection: Any) -> None:
        began = time.perf_counter()
        self._commit(connection)
        self._last_commit_ms = 1000 * (time.perf_counter() - began)


def _median_ms(times_ms: Sequence[float]) -> float:
    return round(statistics.median(times_ms), 2)


def disk_sync_ms(folder: Path) -> float:
    """The median of writing two pages of a database through to the disk."""
    took_ms = []
    with (folder / "pages").open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(8192))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took_ms.append(1000 * (time.perf_counter() - began))
    return _median_ms(took_ms)


async def alone(jobs: int, folder: Path) -> _Decisions:
    """Decisions in a thread that has the process to itself."""
    shown = FalDouble()
    shown.url = "http://127.0.0.1:9"  # nothing is sent
    policy = policy_of(folder / "alone", {"fal": backend_table(shown)})
    async with router_of(policy, TIMING) as router:
        decisions = _Decisions(router._driver)
        for number in range(jobs):
            request = VideoRequest.read({"prompt": f"clip {number}", "tier": "draft"})
            decisions(await router._in_thread(router._create, f"job{number}", f"key{number}", request))
    return decisions


def _stop_and_go(process_id: int, awake_s: float, is_over: Event) -> None:
    while not is_over.wait(awake_s):
        os.kill(process_id, signal.SIGSTOP)
        time.sleep(1.0 - awake_s)
        os.kill(process_id, signal.SIGCONT)


@contextmanager
def _awake(share: float) -> Iterator[None]:
    """This process runs for that share of each second."""
    if share >= 1.0:
        yield
        return
    context = multiprocessing.get_context("spawn")
    is_over = context.Event()
    other = context.Process(target=_stop_and_go, args=(os.getpid(), share, is_over))
    other.start()
    try:
        yield
    finally:
        is_over.set()
        other.join()


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
    sync_ms, by_itself = disk_sync_ms(folder), await alone(jobs, folder)
    began, cpu_s = time.monotonic(), time.process_time()
    rss_mb, most, completed = [], 0, 0
    with _service(jobs / ARRIVALS_PER_S + 5) as fal:
        table = backend_table(fal, poll_s=5.0)
        policy = policy_of(folder / "store", {"fal": table}, tier={"deadline_s": 150.0})
        async with router_of(policy, TIMING) as router:
            decisions = _Decisions(router._driver)
            router._driver.decide = decisions  # type: ignore[method-assign]
            for wave in range(waves):

                async def submit(number: int, wave: int = wave) -> str:
                    await asyncio.sleep(number / ARRIVALS_PER_S)
                    return await router.submit({"prompt": f"clip {wave} {number}", "tier": "draft"})

                ids = await asyncio.gather(*(submit(number) for number in range(jobs)))
                most = max(most, router.in_flight)
                ended = await asyncio.gather(*(router.result(each, timeout_s=600) for each in ids))
                completed += sum(each.status == "completed" for each in ended)
                rss_mb.append(round(psutil.Process().memory_info().rss / 1e6, 1))
    took_s = time.monotonic() - began
    return Load(
        jobs=jobs,
        waves=waves,
        decision_p50_ms=_median_ms(decisions.took_ms),
        decision_p95_ms=round(statistics.quantiles(decisions.took_ms, n=20)[18], 2),
        decision_commit_p50_ms=_median_ms(decisions.commit_ms),
        decision_cpu_p50_ms=_median_ms(decisions.cpu_ms),
        alone_p50_ms=_median_ms(by_itself.took_ms),
        alone_commit_p50_ms=_median_ms(by_itself.commit_ms),
        alone_cpu_p50_ms=_median_ms(by_itself.cpu_ms),
        disk_sync_p50_ms=sync_ms,
        cpu_share=round((time.process_time() - cpu_s) / took_s, 2),
        most_in_flight=most,
        completed=completed,
        rss_mb=rss_mb,
        seconds=round(took_s, 1),
    )


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
    parser.add_argument("--awake", type=float, default=1.0, help="share of each second, of the load")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["load", "breaker"], help="one of the two measurements")
    chosen = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("videogen_client.router").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.only != "breaker":
            with _awake(chosen.awake):
                found = {"awake": chosen.awake, **asdict(asyncio.run(load(chosen.jobs, chosen.waves, Path(folder))))}
            name = "router-load" if chosen.awake >= 1.0 else "router-load-stopped"
            print(found, reporting.write(reporting.RESULTS, name, found, "httpx", "sqlalchemy"))
        if chosen.only != "load":
            logging.getLogger("videogen_client.router").setLevel(logging.ERROR)
            found = asyncio.run(outages(chosen.seed, Path(folder)))
            print(found, reporting.write(reporting.RESULTS, "router-breaker", found, "httpx", "sqlalchemy"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
