"""What the facade adds to a call, and what it takes with many jobs in flight.

    python -m benchmarks.facade --calls 200 --jobs 500

The facade runs in a process of its own, in front of a double of RunPod's API in another one. `added_ms` is the p50 of a
call through the facade less the p50 of the same call of the client alone, in turn. Then all jobs are sent at once and
followed to their end, and every video is fetched. The memory is that of the facade's process when a tenth of the jobs
is done, and at the end. Exits 1 where a call adds over 20 ms, a job fails or the memory grows by over a tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID
from videogen_client import AsyncClient
from videogen_client.page.local_worker import free_port

ROOT = Path(__file__).resolve().parents[1]
KEY = "key-a"
DOUBLE = """
import sys, time
from tests.kits.paid_endpoint import PaidEndpoint
with PaidEndpoint() as endpoint:
    print(endpoint.url, flush=True)
    sys.stdin.read()
"""


@dataclass
class Figures:
    """`added_ms` by call; `jobs_s` from the first request to the last file. Memory in megabytes."""

    calls: int
    jobs: int
    added_ms: dict[str, float] = field(default_factory=dict)
    facade_ms: dict[str, float] = field(default_factory=dict)
    jobs_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    memory_early_mb: float = 0.0
    memory_late_mb: float = 0.0

    @property
    def is_good(self) -> bool:
        grown = self.memory_late_mb / self.memory_early_mb
        return max(self.added_ms.values()) <= 20 and not self.failures and grown < 1.1


@contextmanager
def started(folder: Path) -> Iterator[tuple[str, str, psutil.Process]]:
    """The URL of RunPod's API, that of the facade, and its process."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}"}
    with subprocess.Popen(
        [sys.executable, "-c", DOUBLE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as double:
        assert double.stdout is not None
        runpod = double.stdout.readline().strip()
        port = free_port()
        command = [sys.executable, "-m", "videogen_client.serve", "--endpoint", ENDPOINT_ID, "--runpod-url", runpod]
        command += ["--port", str(port), "--state", str(folder), "--poll", "2"]
        environment |= {"RUNPOD_API_KEY": API_KEY, "FACADE_API_KEYS": KEY}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as facade:
            url = f"http://127.0.0.1:{port}"
            try:
                _wait(url)
                yield runpod, url, psutil.Process(facade.pid)
            finally:
                facade.terminate()
                double.terminate()


def _wait(url: str) -> None:
    for _ in range(600):
        try:
            httpx.get(f"{url}/health", trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the facade does not start")


async def measure(figures: Figures, folder: Path) -> None:
    with started(folder) as (runpod, url, process):
        limits = httpx.Limits(max_connections=50)
        async with (
            AsyncClient(ENDPOINT_ID, API_KEY, base_url=runpod) as alone,
            httpx.AsyncClient(
                base_url=url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False, limits=limits, timeout=120
            ) as http,
        ):
            await _added(figures, alone, http)
            await _in_flight(figures, http, process)


async def _added(figures: Figures, alone: AsyncClient, http: httpx.AsyncClient) -> None:
    took: dict[str, list[float]] = {"submit": [], "status": [], "POST": [], "GET": []}

    async def timed(name: str, call: Any) -> Any:
        began = time.perf_counter()
        found = await call
        took[name].append((time.perf_counter() - began) * 1000)
        return found

    for _ in range(figures.calls):
        job = await timed("submit", alone.submit({"prompt": "a cat"}))
        await timed("status", alone.status(job))
        video = (await timed("POST", http.post("/v1/videos", json={"prompt": "a cat"}))).raise_for_status().json()
        (await timed("GET", http.get(f"/v1/videos/{video['id']}"))).raise_for_status()
    for name, other in (("POST", "submit"), ("GET", "status")):
        figures.facade_ms[name] = round(median(took[name]), 2)
        figures.added_ms[name] = round(median(took[name]) - median(took[other]), 2)


async def _in_flight(figures: Figures, http: httpx.AsyncClient, process: psutil.Process) -> None:
    began, done = time.monotonic(), 0

    async def one(number: int) -> None:
        nonlocal done
        try:
            video = (await http.post("/v1/videos", json={"prompt": f"cat {number}"})).raise_for_status().json()
            while video["status"] not in ("completed", "failed"):
                await asyncio.sleep(1)
                video = (await http.get(f"/v1/videos/{video['id']}")).raise_for_status().json()
            content = (await http.get(f"/v1/videos/{video['id']}/content")).raise_for_status().content
            if len(content) != 20_000:
                figures.failures.append(f"{len(content)} bytes")
        except httpx.HTTPStatusError as failure:
            figures.failures.append(failure.response.text)
        except httpx.HTTPError as failure:
            figures.failures.append(repr(failure))
        done += 1
        if done == figures.jobs // 10:
            figures.memory_early_mb = round(process.memory_info().rss / 1e6, 1)

    await asyncio.gather(*(one(number) for number in range(figures.jobs)))
    figures.jobs_s = round(time.monotonic() - began, 1)
    figures.memory_late_mb = round(process.memory_info().rss / 1e6, 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.facade", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=500)
    chosen = parser.parse_args()
    logging.getLogger("stamina").setLevel(logging.ERROR)
    figures = Figures(chosen.calls, chosen.jobs)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(figures, Path(folder)))
    report = {"machine": reporting.machine("httpx", "fastapi", "uvicorn"), **asdict(figures)}
    text = json.dumps(report, indent=2) + "\n"
    (RESULTS / f"facade-{datetime.now(UTC):%Y-%m-%d}.json").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if figures.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
