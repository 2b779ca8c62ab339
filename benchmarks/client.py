"""The client against an endpoint that fails at random: is a video paid for twice, is one lost, is a file wrong?

    python -m benchmarks.client --runs 300 [--handler]

Requests are refused, cut off or carried out with their answers lost, the endpoint forgets its jobs, the caller runs out
of time, files break off and arrive with wrong bytes. A caller does what the errors say: where one is `retryable` it
calls again, under the same `job_id`. The worker is a double with a journal, which counts what it makes; with
`--handler` it is the real handler.py, on the demo model. Exits 1 where a video was made twice or lost, or a file has
not the worker's bytes.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client" / "src"))

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID
from tests.kits.handled_endpoint import HandledEndpoint
from tests.kits.paid_endpoint import PaidEndpoint
from tests.kits.platform_double import Platform, WorkerProcess
from videogen_client import Client, Timing, VideoGenError
from videogen_client.types import Answer, Input

TIMING = Timing(poll_s=0.002, request_s=5, retry_s=5, attempts=4, first_wait_s=0.001, longest_wait_s=0.005, stall_s=5)
CALLS = 25  # of a caller who does what the errors say, before it counts as lost
SMALLEST = {"height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1}

Endpoint = PaidEndpoint | HandledEndpoint


@dataclass(frozen=True)
class Worker:
    """What makes the videos: `fields` go into each request, `patience_s` is how long a patient caller waits."""

    endpoint: Callable[[], Endpoint] = PaidEndpoint
    fields: Mapping[str, Any] = field(default_factory=dict)
    timing: Timing = TIMING
    patience_s: float = 5.0


@contextmanager
def handler(folder: Path) -> Iterator[Worker]:
    """The real one, which leaves its files in `folder`."""
    with Platform(poll_s=2.0) as platform, WorkerProcess(platform, folder):
        yield Worker(lambda: HandledEndpoint(platform), SMALLEST, replace(TIMING, poll_s=0.1), 120.0)


@dataclass
class Figures:
    """`requests` and `calls` are how many it took; `faults` how many were met."""

    runs: int = 0
    faults: int = 0
    requests: int = 0
    calls: int = 0
    paid_twice: int = 0
    lost: int = 0
    wrong_files: int = 0
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return self.paid_twice == self.lost == self.wrong_files == 0


def measure(runs: int, seed: int, folder: Path, worker: Worker | None = None) -> Figures:
    """`folder` takes the files."""
    dice, figures, began = random.Random(seed), Figures(runs=runs), time.monotonic()
    worker = Worker() if worker is None else worker
    for number in range(runs):
        with (
            worker.endpoint() as endpoint,
            Client(ENDPOINT_ID, API_KEY, base_url=endpoint.url, timing=worker.timing) as client,
        ):
            figures.faults += _plan(endpoint, dice, f"job-{number}")
            payload = cast(Input, {"prompt": "a cat", "job_id": f"job-{number}", **worker.fields})
            patience_s = worker.patience_s
            content = _delivered(client, endpoint, payload, folder / f"{number}.mp4", dice, figures, patience_s)
            figures.lost += content is None
            figures.wrong_files += content is not None and content != endpoint.files[f"job-{number}.mp4"]
            figures.paid_twice += endpoint.made(f"job-{number}") > 1
            figures.requests += len(endpoint.seen)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def _plan(endpoint: Endpoint, dice: random.Random, job_id: str) -> int:
    """Faults for each kind of request; returns how many."""
    for verb in ("run", "status"):
        endpoint.refuse[verb] = [dice.choice([None, 429, 500, 502, 503]) for _ in range(dice.randrange(9))]
        endpoint.lose[verb] = dice.randrange(6)
    kinds = ["cut", "cut", "cut", "status", "wrong"]
    faults = [(kind := dice.choice(kinds), 503 if kind == "status" else dice.randrange(9000)) for _ in range(8)]
    endpoint.file_faults[f"{job_id}.mp4"] = faults[: dice.randrange(9)]
    planned = sum(len(each) for each in endpoint.refuse.values()) + sum(endpoint.lose.values())
    return planned + len(endpoint.file_faults[f"{job_id}.mp4"])


def _delivered(
    client: Client,
    endpoint: Endpoint,
    payload: Input,
    path: Path,
    dice: random.Random,
    figures: Figures,
    patience_s: float,
) -> bytes | None:
    """The bytes that arrived; None where the caller stopped before."""
    answer: Answer | None = None
    for _ in range(CALLS):
        figures.calls += 1
        if dice.random() < 0.15:
            endpoint.forget()
        try:
            if answer is None:
                answer = client.generate(payload, timeout_s=dice.choice([0.02, patience_s, patience_s]))
            return client.download(answer["videos"][0], path).read_bytes()
        except VideoGenError as failure:
            if not failure.retryable:
                return None
    return None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--handler", action="store_true", help="the real handler.py makes the videos")
    chosen = parser.parse_args()
    logging.getLogger("stamina").setLevel(logging.ERROR)  # a line for each retry
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        worker = stack.enter_context(handler(folder / "worker")) if chosen.handler else None
        figures = measure(chosen.runs, chosen.seed, folder, worker)
    name = "client-handler" if chosen.handler else "client"
    print(reporting.write(RESULTS, name, {"seed": chosen.seed, **asdict(figures)}, "httpx", "stamina"))
    print(figures)
    return 0 if figures.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
