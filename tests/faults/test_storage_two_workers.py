"""Two workers with one bucket: each video is stored once, and what both report is what is stored."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.flow.conftest import Answer, Receiver, Runner
from tests.kits.delivery import result_of
from tests.kits.s3_double import BUCKET, Double
from tests.kits.scene import Scene, small
from tests.kits.worker_process import ROOT
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.spool import Spool
from worker.delivery.storage import video_key
from worker.jobs import make
from worker.media import VideoFile


@pytest.mark.slow
def test_what_two_workers_report_of_one_job_is_what_is_stored(
    scene: Scene, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RunPod took the first for dead; their encoders differ."""
    at_once = threading.Barrier(2)
    made = count()
    encode = make.encode

    def differing(*arguments: Any, **options: Any) -> VideoFile:
        file = encode(*arguments, **options)
        content = file.path.read_bytes() + bytes([next(made)])
        file.path.write_bytes(content)
        at_once.wait(120)
        return replace(file, size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())

    monkeypatch.setattr(make, "encode", differing)
    payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [small(response_format="base64")]}
    other = Runner(scene.another_worker())
    other.worker = replace(other.worker, gpu=ThreadPoolExecutor(1))

    async def both() -> list[Answer]:
        return await asyncio.gather(scene.run.start(payload), other.start(payload))

    answers = asyncio.run(both())
    other.worker.gpu.shutdown()
    stored = scene.object("one")
    told = [answer["videos"][0] for answer in answers] + [event["data"] for event in receiver.of_type("completed")]
    assert {video["sha256"] for video in told} == {hashlib.sha256(stored).hexdigest()}
    assert [base64.b64decode(answer["videos"][0]["video_base64"]) for answer in answers] == [stored] * 2
    assert {event["event_id"] for event in receiver.of_type("completed")} == {
        receiver.of_type("completed")[0]["event_id"]
    }
    again = scene.run({**payload})["videos"][0]
    assert again["sha256"] == told[0]["sha256"]
    assert scene.made == [0, 0]


DRAIN = """
import sys
from pathlib import Path
from worker.delivery.journal import Journal
from worker.delivery.spool import Spool
from worker.base.files import StateFolder
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of
state = StateFolder(Path(sys.argv[1]))
place = place_of(sys.argv[2], sys.argv[3])
storage = SpacesStorage(make_client(place, "key", "secret"), place)
print("ready", flush=True)
sys.stdin.readline()
Spool(state, Journal(state)).drain(storage)
"""


@pytest.mark.slow
def test_two_workers_that_wake_together_upload_every_video_once(bucket: Double, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    journal, day = Journal(folder), datetime.now(UTC).date()
    spool = Spool(folder, journal)
    contents = {f"job-{number}": bytes([number]) * 50_000 for number in range(12)}
    for job_id, content in contents.items():
        path = tmp_path / "0.mp4"
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entry = journal.accept(job_id, "d", today=day, seeds=[1])
        video = VideoFile(path, None, 64, 64, 9, 16, len(content), digest)
        spool.keep(video, entry, 0, result_of(video))
    command = [sys.executable, "-c", DRAIN, str(tmp_path / "state"), bucket.endpoint_url, BUCKET]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        worker.communicate(timeout=60)
        assert worker.returncode == 0
    assert bucket.operations().count("put") == 12
    for job_id, content in contents.items():
        assert bucket.objects[f"/{BUCKET}/{video_key(job_id, 0, day)}.mp4"].body == content
        entry = journal.entry(job_id)
        assert entry is not None
        assert entry.finished[0]["video_url"].endswith(f"/{job_id}/0.mp4")
    assert list((tmp_path / "state" / "spool").iterdir()) == []
