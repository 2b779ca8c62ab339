"""A storage that hangs, drips, resets, stores other bytes or redirects, for minutes: is every limit kept, is all there?

    python -m benchmarks.storages --seconds 300 [--seed 1]

The worker is the real handler.py on the demo model; platform and storage are doubles on loopback. Job follows job,
each against a storage that behaves in one of these ways. It ends by itself, by JOB_TIMEOUT_S, or by a stop or SIGTERM
at a random moment. `over_s` is by how much the worst answer or exit missed its limit, to which the seconds that a
finished video has after it are added. In the end the storage works, every job is delivered again, and every video must
be one object of the bytes that its answer says. Writes `benchmarks/results/storages-DATE.json`; ends with 1 where a
limit was missed by more than 2 s, an answer is missing or a video is lost.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from tests.kits import no_orphans
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import Double, Fault, drip, flip_a_byte, reset, say_nothing, serving, status
from worker.jobs.deliver import LAST_S

OPERATIONS = ("put", "head", "get", "create", "part", "complete", "abort")
WAYS: Mapping[str, Fault | None] = {
    "works": None,
    "hangs": say_nothing,
    "drips": drip,
    "resets": reset,
    "flips a byte": flip_a_byte,
    "redirects": status(307, "TemporaryRedirect"),
}
ENDS = ("answer", "answer", "stop", "SIGTERM")
JOB_TIMEOUT_S, GRACE_S = 12.0, 3.0
SLACK_S = 2.0
# What a job of the demo model takes at most where nothing is in its way, and what random moments are within.
MOMENT_S = 6.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """One job: how the storage behaved, how it was ended, what came of it, and by how much its limit was missed."""

    job_id: str
    way: str
    end: str
    came_of_it: str
    over_s: float


def environment(double: Double) -> dict[str, str]:
    return {
        **double.environment(),
        "JOB_TIMEOUT_S": f"{JOB_TIMEOUT_S:g}",
        "SHUTDOWN_GRACE_S": f"{GRACE_S:g}",
        "PRELOAD": "t2v",
    }


def payload(job_id: str, draw: random.Random) -> dict[str, Any]:
    tiny = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1}
    videos = [{**tiny, "seed": draw.randrange(1000)} for _ in range(draw.choice((1, 1, 2)))]
    return {"job_id": job_id, "job_request_params": videos}


def one(platform: Platform, worker: WorkerProcess, sent: Mapping[str, Any], end: str, draw: random.Random) -> Outcome:
    """Deliver `sent` and end it in the way `end`; the outcome's `way` is for the caller to fill in."""
    job_id = sent["job_id"]
    platform.submit(sent, job_id)
    platform.wait_taken(job_id)
    began = time.monotonic()
    limit_s = JOB_TIMEOUT_S + LAST_S
    if end != "answer":
        time.sleep(draw.uniform(0, MOMENT_S))
        since = time.monotonic() - began
        if end == "stop":
            platform.stop(job_id)
            limit_s = min(limit_s, since + LAST_S)
        else:
            worker.terminate()
            worker.wait(GRACE_S + LAST_S + 30)
            over_s = time.monotonic() - began - since - GRACE_S - LAST_S
            return Outcome(job_id, "", end, "answered" if job_id in platform.results else "left", round(over_s, 2))
    try:
        answer = platform.wait_result(job_id, limit_s + 30)
    except TimeoutError:
        return Outcome(job_id, "", end, "no answer", 30.0)
    over_s = time.monotonic() - began - limit_s
    return Outcome(job_id, "", end, _said(answer), round(over_s, 2))


def _said(answer: Mapping[str, Any]) -> str:
    """The status of an answer, or the code of its error."""
    if "error" in answer:
        return str(json.loads(answer["error"])["code"])
    return str(answer["output"]["status"])


def campaign(seconds: float, home: Path, seed: int) -> dict[str, Any]:
    """Jobs for `seconds`, starts of workers not counted, then all of them again; see the module."""
    draw = random.Random(seed)
    outcomes: list[Outcome] = []
    jobs: dict[str, dict[str, Any]] = {}
    with Platform() as platform, serving() as double:
        left_s = seconds
        while left_s > 0:
            with WorkerProcess(platform, home, environment(double)) as worker:
                while worker.is_alive and left_s > 0:
                    began = time.monotonic()
                    way, end = draw.choice(list(WAYS)), draw.choice(ENDS)
                    fault = WAYS[way]
                    double.always = {} if fault is None else dict.fromkeys(OPERATIONS, fault)
                    job_id = f"storage-{len(jobs):04d}"
                    jobs[job_id] = payload(job_id, draw)
                    outcome = one(platform, worker, jobs[job_id], end, draw)
                    outcomes.append(Outcome(job_id, way, end, outcome.came_of_it, outcome.over_s))
                    left_s -= time.monotonic() - began
        double.always = {}
        with WorkerProcess(platform, home, {**environment(double), "JOB_TIMEOUT_S": "300"}) as worker:
            lost = [job_id for job_id, sent in jobs.items() if not _is_whole(platform, double, job_id, sent)]
        kept = len(list((home / "state" / "spool").glob("*.mp4")))
    return {
        "seconds": seconds,
        "seed": seed,
        "jobs": len(jobs),
        "by_storage": dict(Counter(outcome.way for outcome in outcomes)),
        "by_end": dict(Counter(f"{outcome.end}: {outcome.came_of_it}" for outcome in outcomes)),
        "worst_over_s": max(outcome.over_s for outcome in outcomes),
        "no_answer": sum(outcome.came_of_it == "no answer" for outcome in outcomes),
        "lost": lost,
        "still_kept": kept,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _is_whole(platform: Platform, double: Double, job_id: str, sent: Mapping[str, Any]) -> bool:
    """Deliver the job once more: whether each of its videos is one object of the bytes that its answer says."""
    platform.submit(sent, job_id)
    answer = platform.wait_result(job_id, 300).get("output")
    if answer is None or answer["status"] != "completed":
        return False
    stored = {path: each.body for path, each in double.objects.items() if f"/{job_id}/" in path}
    told = {f"/{job_id}/{video['index']}.mp4": video["sha256"] for video in answer["videos"]}
    found = {
        suffix: [hashlib.sha256(body).hexdigest() for path, body in stored.items() if path.endswith(suffix)]
        for suffix in told
    }
    return len(told) == len(sent["job_request_params"]) and found == {name: [sha] for name, sha in told.items()}


def is_good(report: Mapping[str, Any]) -> bool:
    return report["worst_over_s"] <= SLACK_S and not (report["no_answer"] or report["lost"] or report["still_kept"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of behaviours, ends and moments (default 1)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    no_orphans.end_children_at_sigterm()
    with tempfile.TemporaryDirectory() as home:
        report = campaign(options.seconds, Path(home), options.seed)
    reporting.write(options.output, "storages", {"good": is_good(report), **report}, "boto3")
    print(json.dumps({name: value for name, value in report.items() if name != "outcomes"}, indent=2))
    return 0 if is_good(report) else 1


if __name__ == "__main__":
    sys.exit(main())
