"""A worker that is killed at any moment loses nothing: a new one does the job again, and everything is there once.

One kill at each of three stages; `python -m benchmarks.kills` makes ten at all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import STAGES, VIDEOS, Kill, campaign
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.webhook_receiver import Handler, Received, Receiver

KILLED_AT = ("generate", "upload", "after upload")


@pytest.fixture(scope="module")
def kills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kill]:
    """What came of one kill at each stage, by the stage's name."""
    stages = [stage for stage in STAGES if stage.name in KILLED_AT]
    return {kill.stage: kill for kill in campaign(1, tmp_path_factory.mktemp("kills"), stages=stages)}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", KILLED_AT)
def test_a_job_whose_worker_was_killed_is_done_again_and_everything_is_there_once(
    kills: dict[str, Kill], stage: str
) -> None:
    kill = kills[stage]
    assert kill.problems == (), kill
    assert kill.arrivals >= VIDEOS


@pytest.mark.slow
def test_what_a_killed_worker_could_not_tell_is_told_by_the_next_one_without_the_job(tmp_path: Path) -> None:
    """The answer is lost with the worker, and the job is never delivered again: the event still arrives."""
    payload: dict[str, Any] = {
        "prompt": "a cat",
        "height": 256,
        "width": 256,
        "num_frames": 5,
        "num_inference_steps": 2,
        "webhook_events": ["completed"],
    }

    def refuse(handler: Handler, received: Received, number: int) -> None:
        handler.answer(503)

    def take(handler: Handler, received: Received, number: int) -> None:
        handler.answer(200)

    with Receiver(refuse) as receiver, Platform() as platform:
        with WorkerProcess(platform, tmp_path) as worker:
            job_id = platform.submit({**payload, "webhook_url": receiver.url})
            worker.wait_until(lambda: len(receiver.received) == 1)
            worker.kill()
        refused = receiver.received[0]
        receiver.behaviour = take
        with WorkerProcess(platform, tmp_path) as worker:
            worker.wait_until(lambda: len(receiver.received) == 2)
            worker.wait_until(lambda: not list((tmp_path / "state" / "outbox").glob("*.json")))
        assert receiver.received[1].body == refused.body
        assert job_id not in platform.results
    event = json.loads(refused.body)
    assert (event["type"], event["data"]["job_id"]) == ("completed", job_id)
    stored = Path(event["data"]["video_url"].removeprefix("file://")).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == event["data"]["sha256"]


@pytest.mark.slow
def test_what_a_killed_worker_left_on_the_disk_goes_with_a_later_one(tmp_path: Path) -> None:
    """Its temporary folders, and the half-written file of a video in the local storage, once they are a day old."""
    video = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 33, "num_inference_steps": 2}
    temporary = tmp_path / "tmp"
    with Platform() as platform:
        with WorkerProcess(platform, tmp_path) as worker:
            platform.submit(video)
            worker.wait_until(lambda: any(temporary.glob("videogen-job-*/.0.mp4.*")), every_s=0.001)
            worker.kill()
        left = list(temporary.glob("videogen-*"))
        assert {path.name.split("-")[1] for path in left} >= {"job", "demo"}
        # As a worker that dies while it stores leaves one; tests/unit/delivery/test_storage_local.py kills one there.
        part = tmp_path / "outputs" / "videos" / "2026-11-21" / "job" / ".0.mp4.0123abcd.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"half a video")
        then = time.time() - 25 * 3600
        for path in (*left, part):
            os.utime(path, (then, then))
        with WorkerProcess(platform, tmp_path) as worker:
            worker.wait_until(lambda: not any(path.exists() for path in (*left, part)))
            assert any(temporary.glob("videogen-demo-*"))  # its own
