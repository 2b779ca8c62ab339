"""Several workers on one state folder, each job delivered to two of them at once: is what is reported what is stored?

    python -m benchmarks.shared_state --jobs 200 --workers 2 4

The workers are the real handler.py on the demo model, in processes of their own, whose files differ in their bytes:
each writes another producer into them. Platform, storage and webhook receiver are doubles on loopback. Every job is
delivered twice at once, and once more when all are answered; the storage takes nothing of a job before two workers have
begun it. All answers, the final event and the object must have one sha256, and the third delivery must make nothing.
Writes `benchmarks/results/shared-state-DATE.json`; ends with 1
otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits import no_orphans
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import Double, Handler, serving
from tests.kits.webhook_receiver import Receiver

# Jobs that wait at the platform at once, for each worker: more would only wait there.
_AHEAD = 2
# The storage waits no longer for a second worker to begin a job.
_SECOND_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """Of one number of workers. `made` is how many videos were made, of which `jobs` are needed; `made_again` those of
    the third delivery, `differing` the jobs of which answers, event and object are not one."""

    workers: int
    jobs: int
    made: int
    made_again: int
    differing: tuple[str, ...]
    event_ids_twice: int
    objects: int
    seconds: float

    @property
    def good(self) -> bool:
        return not (self.made_again or self.differing or self.event_ids_twice) and self.objects == self.jobs


def environment(double: Double, number: int) -> dict[str, str]:
    return {
        **double.environment(),
        "AIGC_PRODUCER": f"worker-{number}",
        "PRELOAD": "t2v",
    }


def payload(number: int, webhook_url: str) -> dict[str, Any]:
    video = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1, "seed": number}
    return {"job_id": f"shared-{number:04d}", "webhook_url": webhook_url, "job_request_params": [video]}


def measure(workers: int, jobs: int, home: Path) -> Report:
    began = time.monotonic()
    with ExitStack() as stack:
        platform = stack.enter_context(Platform())
        double = stack.enter_context(serving())
        receiver = stack.enter_context(Receiver(lambda hook, _received, _number: hook.answer(200)))
        running = [
            stack.enter_context(WorkerProcess(platform, home, environment(double, number))) for number in range(workers)
        ]

        def held(handler: Handler) -> bool:
            """Until two workers have begun the job whose file comes: neither may find the other's before its own."""
            deadline = time.monotonic() + _SECOND_WITHIN_S
            job_id = handler.path.split("/")[-2]
            while sum(_begun(worker, job_id) for worker in running) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            return False

        double.always["put"] = held
        sent = [payload(number, receiver.url) for number in range(jobs)]
        answers = _delivered(platform, [each for each in sent for _ in range(2)], at_once=_AHEAD * workers)
        made = _made(running)
        again = _delivered(platform, sent, at_once=_AHEAD * workers)
        events = [each.event for each in receiver.received if each.event["type"] == "completed"]
        told: dict[str, set[str]] = {each["job_id"]: set() for each in sent}
        for answer in (*answers, *again):
            told[answer["job_id"]].add(_sha256(answer))
        ids: dict[str, set[str]] = {}
        for event in events:
            told[event["data"]["job_id"]].add(event["data"]["sha256"])
            ids.setdefault(event["data"]["job_id"], set()).add(event["event_id"])
        stored = {
            path.split("/")[-2]: hashlib.sha256(each.body).hexdigest()
            for path, each in double.objects.items()
            if path.endswith(".mp4")
        }
        return Report(
            workers=workers,
            jobs=jobs,
            made=made,
            made_again=_made(running) - made,
            differing=tuple(job_id for job_id, digests in told.items() if digests != {stored.get(job_id)}),
            event_ids_twice=sum(len(each) > 1 for each in ids.values()),
            objects=sum(path.endswith(".mp4") for path in double.objects),
            seconds=round(time.monotonic() - began, 1),
        )


def _delivered(platform: Platform, payloads: Sequence[Mapping[str, Any]], *, at_once: int) -> list[dict[str, Any]]:
    """The answers of `payloads`, `at_once` of which are with the platform at a time."""
    waiting: list[str] = []
    answers = []
    for each in payloads:
        if len(waiting) >= at_once:
            answers.append(platform.wait_result(waiting.pop(0), 300))
        waiting.append(platform.submit(each))
    answers += [platform.wait_result(job_id, 300) for job_id in waiting]
    return [answer["output"] for answer in answers]


def _sha256(answer: Mapping[str, Any]) -> str:
    (video,) = answer["videos"]
    return str(video.get("sha256", video.get("code")))


def _made(workers: Sequence[WorkerProcess]) -> int:
    """How many videos were begun on the GPU, by the workers' logs."""
    return sum(_begun(worker) for worker in workers)


def _begun(worker: WorkerProcess, job_id: str = "") -> int:
    return sum("text_to_video, prompt" in line and job_id in line for line in worker.log.splitlines())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    no_orphans.end_children_at_sigterm()
    reports = []
    for workers in options.workers:
        with tempfile.TemporaryDirectory() as home:
            reports.append(measure(workers, options.jobs, Path(home)))
        print(json.dumps(asdict(reports[-1]), indent=2))
    good = all(report.good for report in reports)
    reporting.write(options.output, "shared-state", {"good": good, "runs": reporting.as_dicts(reports)})
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
