"""Router processes that are killed at random moments (kill -9) or stand still: is a video paid twice or lost?

    python -m benchmarks.router_kills --jobs 45 --kills 8 --stops 4

One process, then three, on one Postgres, against the services of benchmarks.router with their faults. A killed process
is started again; a caller whose process dies before it has an id submits again under the same key, elsewhere. One that
is stopped (SIGSTOP) goes on after its lease is over. Exits 1 as benchmarks.router does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from benchmarks.router import TIERS, Figures, doubles, judge, policy_for
from tests.kits.postgres import postgres
from tests.kits.router_kit import router_of
from videogen_client.router import NoCandidate, Policy, RouterTiming
from videogen_client.router.store import Store

ROOT = Path(__file__).resolve().parents[1]
# A lease is a little longer than a submission: what a killed process has left is taken over soon.
TIMING = RouterTiming(submit_s=3.0, read_s=3.0, lease_s=7.0, retry_s=0.1, pause_s=0.1, find_s=4.0)
DEADLINE_S = 60.0
END_S = 120.0


class Process:
    """A router process. `acknowledged` are the keys of which it has returned the id, or a refusal."""

    def __init__(self, policy: Path, acknowledged: set[str]) -> None:
        self._policy = policy
        self._acknowledged = acknowledged
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "benchmarks.router_kills", "--serve", str(self._policy)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "client" / "src")])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if line.endswith("\n"):
                    self._acknowledged.add(line.strip())

    def send(self, number: int, dice: random.Random) -> None:
        request = {
            "prompt": f"clip {number}",
            "tier": TIERS[number % len(TIERS)],
            "tenant": dice.choice(["large"] * 4 + ["small"]),
        }
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps({"key": f"job-{number}", "request": request}) + "\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def stand_still(self) -> None:
        """For longer than its lease, and long enough that another process sees the end of its job."""
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(TIMING.lease_s + TIMING.find_s + 1.0)
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def running(count: int, policy: Path, acknowledged: set[str]) -> Iterator[list[Process]]:
    processes = [Process(policy, acknowledged) for _ in range(count)]
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()


def measure(count: int, jobs: int, kills: int, stops: int, seed: int, folder: Path, url: str) -> Figures:
    """`count` processes on the database of `url`."""
    dice, figures, began = random.Random(seed), Figures(runs=jobs), time.monotonic()
    with contextlib.ExitStack() as stack:
        services = doubles(dice, jobs, faulty=0.1)
        for double in services.values():
            stack.enter_context(double)
        policy = policy_for(url, services, jobs)
        tiers = {name: tier.model_copy(update={"deadline_s": DEADLINE_S}) for name, tier in policy.tiers.items()}
        policy = policy.model_copy(update={"tiers": tiers})
        path = folder / f"policy-{count}.json"
        path.write_text(policy.model_dump_json(), encoding="utf-8")
        acknowledged: set[str] = set()
        with running(count, path, acknowledged) as processes:
            _disturb(processes, jobs, kills, stops, acknowledged, dice)
            ended = _wait_for_the_end(Store(policy, time.time), jobs, acknowledged, processes)
        time.sleep(5.0)
        judge(figures, ended.jobs(limit=10 * jobs), services)
        figures.refused = jobs - figures.completed - figures.failed - figures.cancelled - figures.unknown
        ended.close()
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def _disturb(
    processes: list[Process], jobs: int, kills: int, stops: int, acknowledged: set[str], dice: random.Random
) -> None:
    """Jobs are spread over the time of the kills and stops; what was not acknowledged is sent again."""
    sent = 0
    is_stop = dice.sample([False] * kills + [True] * stops, kills + stops)
    for turn in range(kills + stops):
        for number in range(sent, jobs * (turn + 1) // (kills + stops)):
            dice.choice(processes).send(number, random.Random(number))
            sent = number + 1
        time.sleep(dice.uniform(0.5, 6.0))  # a process needs two or three seconds to start
        process = dice.choice(processes)
        if is_stop[turn]:
            process.stand_still()
        else:
            process.kill()
            process.start()
        _send_again(processes, sent, acknowledged, dice)


def _send_again(processes: list[Process], sent: int, acknowledged: set[str], dice: random.Random) -> None:
    for number in range(sent):
        if f"job-{number}" not in acknowledged:
            dice.choice(processes).send(number, random.Random(number))


def _wait_for_the_end(store: Store, jobs: int, acknowledged: set[str], processes: list[Process]) -> Store:
    deadline, dice = time.monotonic() + END_S, random.Random(0)
    while time.monotonic() < deadline:
        if len(acknowledged) == jobs and all(each.status != "open" for each in store.jobs(limit=10 * jobs)):
            break
        time.sleep(1.0)
        _send_again(processes, jobs, acknowledged, dice)
    return store


async def serve(policy: Policy) -> None:
    """Submits what is written to its input, and writes the key of what it has taken."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    async with router_of(policy, TIMING) as router:

        async def submit(order: dict[str, object]) -> None:
            with contextlib.suppress(NoCandidate):
                await router.submit(order["request"], key=str(order["key"]))  # type: ignore[arg-type]
            sys.stdout.write(f"{order['key']}\n")
            sys.stdout.flush()

        while line := await loop.run_in_executor(None, sys.stdin.readline):
            task = asyncio.create_task(submit(json.loads(line)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.sleep(3600)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_kills", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--jobs", type=int, default=45)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--stops", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    if chosen.serve is not None:
        asyncio.run(serve(Policy.model_validate_json(chosen.serve.read_text(encoding="utf-8"))))
        return 0
    found = {}
    for count in (1, 3):
        with postgres() as url, tempfile.TemporaryDirectory() as folder:
            found[count] = measure(count, chosen.jobs, chosen.kills, chosen.stops, chosen.seed, Path(folder), url)
            print(count, found[count])
    result = {"seed": chosen.seed, "kills": chosen.kills, "stops": chosen.stops}
    runs = [{"processes": count, **asdict(each)} for count, each in found.items()]
    print(reporting.write(reporting.RESULTS, "router-kills", {**result, "runs": runs}, "sqlalchemy", "psycopg"))
    return 0 if all(each.is_clean for each in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
