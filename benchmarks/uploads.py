"""Uploads to a storage that resets connections, answers 503 and dies for whole jobs: is every video stored whole?

    python -m benchmarks.uploads --count 200

Runs whole jobs on the built-in demo model, with the real client, journal and spool, against an S3 server on loopback
that demands and checks Content-MD5 (tests/kits/s3_double.py). A quarter of its answers are faults; for every fifth job
it dies part-way and stays dead until the job is answered. Then half of the failed jobs are delivered again, another
worker tidies up, and the other half is delivered again. Writes `benchmarks/results/uploads-DATE.json`; ends with 1
unless every job is completed in the end, every object has the SHA-256 that its job's answer says, no part of an upload
stays behind, and no video was made twice.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits.s3_double import Double, Fault, Handler, lose_the_answer, reset, serving, status
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.spool import Spool
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import TOTAL_MAX_ATTEMPTS, make_client
from worker.delivery.storage.spaces_place import place_of
from worker.engine import Engine
from worker.jobs import flow, tidy
from worker.jobs.services import Services

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "videos-bucket"
OPERATIONS = ("put", "head", "create", "part", "complete", "abort")
FAULT_SHARE = 0.25
DEAD_EVERY = 5
AT_ONCE = 4
# The demo's videos of 9 frames go up in parts, as videos above 64 MiB do, and those of 5 frames whole.
THRESHOLD_BYTES = 140 * 1024
PART_BYTES = 32 * 1024


@dataclass(frozen=True)
class Report:
    """What became of `count` jobs of one video each. `failed_at_first` received upload_failed, retryable.

    `empty_uploads` were begun without the client ever hearing of it, its answer being lost: they hold no parts.
    """

    count: int
    completed: int
    equal_hashes: int
    orphan_parts: int
    empty_uploads: int
    generated: int
    failed_at_first: int
    kept_in_the_end: int
    in_parts: int
    requests: int
    faults: Mapping[str, int]
    seconds: float

    @property
    def good(self) -> bool:
        whole = self.completed == self.equal_hashes == self.generated == self.count
        return whole and self.orphan_parts == self.kept_in_the_end == 0


class Weather:
    """Decides what each request to the double meets. A job in `dying` has so many requests left."""

    def __init__(self, double: Double, seed: int, plan: int) -> None:
        self.dying: dict[str, int] = {}
        self.faults: Counter[str] = Counter()
        draw = random.Random(seed)
        kinds: dict[str, Fault] = {
            "reset": reset,
            "reset in the body": _reset_in_the_body,
            "503": status(503, "SlowDown"),
            "answer lost": lose_the_answer,
        }
        for operation in OPERATIONS:
            names = [draw.choice(list(kinds)) if draw.random() < FAULT_SHARE else None for _ in range(plan)]
            double.faults[operation] = [self._meet(name, kinds[name] if name else _pass) for name in names]
            double.always[operation] = self._meet(None, _pass)

    def _meet(self, name: str | None, fault: Fault) -> Fault:
        def meet(handler: Handler) -> bool:
            job_id = handler.path.split("/")[-2]
            if job_id in self.dying:
                self.dying[job_id] -= 1
                if self.dying[job_id] < 0:
                    self.faults["dead"] += 1
                    return reset(handler)
            if name is not None:
                self.faults[name] += 1
            return fault(handler)

        meet.before_body = getattr(fault, "before_body", False)  # type: ignore[attr-defined]
        return meet


def _pass(_handler: Handler) -> bool:
    return False


def _reset_in_the_body(handler: Handler) -> bool:
    handler.rfile.read(int(handler.headers.get("Content-Length", "0")) // 2)
    return reset(handler)


_reset_in_the_body.before_body = True  # type: ignore[attr-defined]


class Counting:
    """The engine, counting what it makes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.generated = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def generate(self, *arguments: Any, **options: Any) -> Any:
        self.generated += 1
        return self._engine.generate(*arguments, **options)


def request(number: int) -> dict[str, Any]:
    video = {"prompt": "a cat on a sofa", "height": 256, "width": 256, "num_inference_steps": 1}
    frames = 5 + 4 * (number % 2)
    return {"job_id": f"upload-{number:04d}", "job_request_params": [{**video, "num_frames": frames, "seed": number}]}


def measure(worker: Services, state_dir: Path, *, count: int, seed: int, attempts: int = TOTAL_MAX_ATTEMPTS) -> Report:
    """Run `count` jobs against bad weather. `worker` gives the engine and all else but the storage; see the module."""
    began = time.perf_counter()
    engine = Counting(worker.engine)
    with serving() as double:
        weather = Weather(double, seed, plan=count * 50)
        place = place_of(double.endpoint_url, BUCKET)
        clients: list[S3Client] = []

        def connect() -> S3Client:
            clients.append(make_client(place, "key", "secret", total_max_attempts=attempts))
            return clients[-1]

        first, second = (
            replace(
                worker,
                engine=engine,  # type: ignore[arg-type]
                storage=SpacesStorage(
                    connect(),
                    place,
                    multipart_threshold_bytes=THRESHOLD_BYTES,
                    part_bytes=PART_BYTES,
                    renew=connect,
                ),
                spool=Spool(StateFolder(state_dir), Journal(StateFolder(state_dir))),
                journal=Journal(StateFolder(state_dir)),
            )
            for _ in range(2)
        )
        answers, failed = asyncio.run(_run(first, second, weather, count, random.Random(seed + 1)))
        for client in clients:
            client.close()
        objects = {path: stored.body for path, stored in double.objects.items() if path.endswith(".mp4")}
        return Report(
            count=count,
            completed=sum(answer["status"] == "completed" for answer in answers),
            equal_hashes=sum(_is_stored(answer, objects) for answer in answers),
            orphan_parts=sum(len(parts) for parts in double.uploads.values()),
            empty_uploads=sum(not parts for parts in double.uploads.values()),
            generated=engine.generated,
            failed_at_first=failed,
            kept_in_the_end=sum(1 for _ in (state_dir / "spool").glob("*")),
            in_parts=sum(len(body) > THRESHOLD_BYTES for body in objects.values()),
            requests=len(double.seen),
            faults=dict(sorted(weather.faults.items())),
            seconds=round(time.perf_counter() - began, 1),
        )


async def _run(
    first: Services, second: Services, weather: Weather, count: int, draw: random.Random
) -> tuple[list[dict[str, Any]], int]:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, worker: Services) -> dict[str, Any]:
        async with at_once:
            payload = request(number)
            answer = await flow.run({"id": payload["job_id"], "input": payload}, worker, lambda _: None)
            weather.dying.pop(payload["job_id"], None)
            return answer

    for number in range(0, count, DEAD_EVERY):
        weather.dying[request(number)["job_id"]] = draw.randrange(2)
    answers = list(await asyncio.gather(*(one(number, first) for number in range(count))))
    failed = [number for number, answer in enumerate(answers) if answer["status"] != "completed"]
    half = len(failed) // 2
    for number in failed[:half]:
        answers[number] = await one(number, first)
    await tidy.tidy(second)
    # The weather stays bad: a job may fail once more, as it may in life.
    for _ in range(3):
        for number in [number for number in failed if answers[number]["status"] != "completed"]:
            answers[number] = await one(number, first)
    return answers, len(failed)


def _is_stored(answer: Mapping[str, Any], objects: Mapping[str, bytes]) -> bool:
    """Whether the one object of this job has the SHA-256 that its answer says."""
    mine = [body for path, body in objects.items() if path.endswith(f"/{answer['job_id']}/0.mp4")]
    return len(mine) == 1 and [hashlib.sha256(mine[0]).hexdigest()] == [v.get("sha256") for v in answer["videos"]]


def main() -> int:
    parser = argparse.ArgumentParser(description="Upload many videos to a storage that fails in every way.")
    parser.add_argument("--count", type=int, default=200, help="jobs of one video each (default 200)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result (default results)")
    options = parser.parse_args()

    from worker.base.settings import Settings
    from worker.start import build_worker

    folder = Path(tempfile.mkdtemp(prefix="videogen-uploads-"))
    try:
        worker = build_worker(Settings(model_profile="demo", preload=("t2v",), state_dir=folder))
        report = measure(worker, folder, count=options.count, seed=options.seed)
        worker.gpu.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = {"seed": options.seed, "good": report.good, **asdict(report)}
    reporting.write(options.output, "uploads", result, "boto3")
    print(json.dumps(result, indent=2))
    return 0 if report.good else 1


if __name__ == "__main__":
    sys.exit(main())
