"""Kills the worker at every stage of a job, at random moments, and lets a new worker do the job again.

    python -m benchmarks.kills [--times 10] [--lanes 2] [--seed 1]

The worker is the real handler.py on the demo model, killed with SIGKILL together with its children, as a container is.
The platform, the bucket and the webhook receiver are doubles on loopback that hold a worker where it is to be killed.
Each worker first does the job that its predecessor died of, then takes the job that it will die of itself. After every
kill: each video is one public object of the right bytes, its final event has one id and arrived, and nothing half-made
is left in sight. Prints a line a stage and writes a dated JSON beside the other results; exits with 1 where a check
failed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from benchmarks import reporting
from benchmarks.kill_site import VIDEOS, Site, open_site
from benchmarks.reporting import RESULTS
from tests.kits import no_orphans, s3_double
from tests.kits.platform_double import WorkerProcess


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it. `after_s`: how long the worker lived on once it was seen to be at the stage."""

    stage: str
    video: int
    after_s: float
    problems: tuple[str, ...]
    arrivals: int
    redone_in_s: float


@dataclass(frozen=True)
class Stage:
    """`hold` is where the worker waits; `reached` returns whether it is at the stage, which lasts `lasts_s`."""

    name: str
    lasts_s: float
    reached: Callable[[Victim], bool]
    hold: str = ""


@dataclass(frozen=True)
class Victim:
    """A worker at the job that it is to be killed in."""

    site: Site
    worker: WorkerProcess
    job_id: str
    video: int


def _seen(place: str) -> Callable[[Victim], bool]:
    return lambda victim: f"{place} {victim.video}" in victim.site.seen


def _taken(victim: Victim) -> bool:
    return victim.job_id in victim.site.platform.taken


def _begun(victim: Victim) -> bool:
    lines = [line for line in victim.worker.log.splitlines() if line.endswith(victim.job_id)]
    return any(f" video {victim.video}: " in line and "prompt" in line for line in lines)


def _encoding(victim: Victim) -> bool:
    return any(victim.worker.temporary.glob(f"videogen-job-*/.{victim.video}.mp4.*"))


STAGES = (
    Stage("accept", 0.1, _taken),
    Stage("fetch", 0.3, _seen("fetch"), "fetch"),
    Stage("load", 0.08, _begun),
    Stage("generate", 0.6, _begun),
    Stage("encode", 0.8, _encoding),
    Stage("upload", 0.3, _seen("upload"), "upload"),
    Stage("after upload", 0.1, _seen("stored"), "webhook"),
    Stage("webhook", 0.3, _seen("webhook"), "webhook"),
)


def campaign(
    times: int, home: Path, *, lanes: int = 2, seed: int | None = None, stages: Sequence[Stage] = STAGES
) -> list[Kill]:
    """`times` kills of each of `stages`, which are shared out among `lanes` that run side by side."""
    source = random.Random(seed)
    jobs = [(stage, source.randrange(VIDEOS), random.Random(source.random())) for stage in stages for _ in range(times)]
    source.shuffle(jobs)
    with ThreadPoolExecutor(lanes) as pool:
        parts = [pool.submit(_lane, jobs[lane::lanes], home / f"lane-{lane}") for lane in range(lanes)]
        return [kill for part in parts for kill in part.result()]


def _lane(jobs: Sequence[tuple[Stage, int, random.Random]], home: Path) -> list[Kill]:
    kills: list[Kill] = []
    with open_site(home) as site:
        died_of: tuple[str, dict[str, Any], Stage, int, float] | None = None
        for job in (*jobs, None):
            with WorkerProcess(site.platform, home, site.environment) as worker:
                if died_of is not None:
                    kills.append(_redone(site, *died_of))
                if job is not None:
                    died_of = _killed(site, worker, *job)
    return kills


def _killed(
    site: Site, worker: WorkerProcess, stage: Stage, video: int, source: random.Random
) -> tuple[str, dict[str, Any], Stage, int, float]:
    site.hold(f"{stage.hold} {video}", is_done=source.random() < 0.5)
    payload = site.payload(stage.name, video)
    job_id = site.platform.submit(payload)
    victim = Victim(site, worker, job_id, video)
    worker.wait_until(lambda: stage.reached(victim), every_s=0.001)
    after_s = source.uniform(0, stage.lasts_s)
    time.sleep(after_s)
    worker.kill()
    site.release()
    return job_id, payload, stage, video, after_s


def _redone(site: Site, job_id: str, payload: dict[str, Any], stage: Stage, video: int, after_s: float) -> Kill:
    """Deliver the job again, to the worker that has just started, and check everything."""
    torn = [name for name, stored in site.bucket.objects.items() if not _is_whole(stored)]
    began = time.monotonic()
    site.platform.submit(payload, job_id)
    answer = site.platform.wait_result(job_id, 120)["output"]
    redone_in_s = time.monotonic() - began
    arrived = [event for event in site.arrived if event["data"]["job_id"] == job_id]
    problems = [f"torn: {name}" for name in torn] + list(_problems(site, job_id, answer, arrived))
    return Kill(stage.name, video, round(after_s, 3), tuple(problems), len(arrived), round(redone_in_s, 2))


def _problems(site: Site, job_id: str, answer: dict[str, Any], arrived: list[dict[str, Any]]) -> Iterator[str]:
    if answer["status"] != "completed" or len(answer["videos"]) != VIDEOS:
        yield f"answered {answer['status']}: {json.dumps(answer)}"
        return
    mine = {name: stored for name, stored in site.bucket.objects.items() if f"/{job_id}/" in name}
    urls = [video[key] for video in answer["videos"] for key in ("video_url", "thumbnail_url")]
    if sorted(site.bucket.endpoint_url + name for name in mine) != sorted(urls):
        yield f"the bucket holds {sorted(mine)}, the answer names {urls}"
        return
    for video in answer["videos"]:
        body = mine[video["video_url"].removeprefix(site.bucket.endpoint_url)].body
        if hashlib.sha256(body).hexdigest() != video["sha256"] or _frames(body) != video["num_frames"]:
            yield f"video {video['index']} has other bytes than the answer says"
        told = [event for event in arrived if event["index"] == video["index"]]
        if len({event["event_id"] for event in told}) != 1 or any(event["data"] != video for event in told):
            yield f"video {video['index']} was reported as {told}"
    if any(event["type"] != "completed" for event in arrived):
        yield "a failure was reported"
    if left := [path.name for path in (site.home / "state" / "outbox").glob("*.json")]:
        yield f"still in the outbox: {left}"
    if site.bucket.uploads or [
        name for name in site.bucket.objects if not name.startswith(f"/{s3_double.BUCKET}/videos/")
    ]:
        yield "something else is in the bucket"


def _is_whole(stored: s3_double.Stored) -> bool:
    return hashlib.sha256(stored.body).hexdigest() == stored.headers["x-amz-meta-sha256"]


def _frames(body: bytes) -> int:
    with av.open(io.BytesIO(body), "r") as container:
        return len(list(container.decode(video=0)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="kills of each stage")
    parser.add_argument("--lanes", type=int, default=2, help="workers side by side")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1_000_000))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    no_orphans.end_children_at_sigterm()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        kills = campaign(options.times, Path(home), lanes=options.lanes, seed=options.seed)
    bad = Counter(kill.stage for kill in kills if kill.problems)
    for stage in STAGES:
        mine = [kill for kill in kills if kill.stage == stage.name]
        twice = sum(kill.arrivals > VIDEOS for kill in mine)
        print(f"{stage.name:<13} {len(mine)} kills, {bad[stage.name]} with problems, {twice} with an event sent twice")
    for kill in kills:
        for problem in kill.problems:
            print(f"{kill.stage}, video {kill.video}, {kill.after_s} s in: {problem}")
    report = {
        "seed": options.seed,
        "times": options.times,
        "took_s": round(time.monotonic() - began, 1),
        "kills_with_problems": sum(bad.values()),
        "kills": reporting.as_dicts(kills),
    }
    reporting.write(options.output, "kills", report)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
