"""A storage that is slow, silent, or says a byte now and then: every limit of a job and of the worker holds."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.flow.conftest import Answer, Receiver
from tests.kits.delivery import make_video, result_of
from tests.kits.loopback import takes_at_most
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import Double, Fault, Handler, drip, say_nothing
from tests.kits.scene import EVERYTHING, Scene, error_of, small
from tests.kits.slow import slow
from worker.base.sigterm import Shutdown
from worker.jobs.deliver import LAST_S


def test_the_events_of_a_job_go_out_in_order_though_its_first_upload_is_slow(scene: Scene, receiver: Receiver) -> None:
    second_is_stored = threading.Event()

    def slow_first(handler: Handler) -> bool:
        if handler.path.endswith("/0.mp4"):
            assert second_is_stored.wait(60)
        return False

    def stored(handler: Handler) -> bool:
        if handler.path.endswith("/1.mp4"):
            second_is_stored.set()
        return False

    scene.double.always.update(put=slow_first, head=stored)
    videos = [small(thumbnail=False), small(seed=2, thumbnail=False)]
    answer = scene.run({"job_id": "one", "webhook_url": receiver.url, "job_request_params": videos})
    assert answer["status"] == "completed"
    assert [event["index"] for event in receiver.of_type("completed")] == [0, 1]


@pytest.mark.parametrize(
    ("fault", "way"),
    [(say_nothing, "stopped"), *slow((say_nothing, "shut down"), (drip, "stopped"), (drip, "shut down"))],
)
def test_whatever_ends_a_job_ends_its_upload_and_keeps_the_video(scene: Scene, fault: Fault, way: str) -> None:
    uploading = threading.Event()

    def held(handler: Handler) -> bool:
        uploading.set()
        return fault(handler)

    scene.double.always["put"] = held
    payload = {"job_id": "one", "job_request_params": [small()]}

    async def stopped() -> Answer | None:
        job = asyncio.create_task(scene.run.start(payload))
        assert await asyncio.to_thread(uploading.wait, 120)
        with takes_at_most(LAST_S + 5):
            if way == "stopped":
                job.cancel()
            else:
                scene.run.worker.shutdown.begin()
            await asyncio.wait({job})
        return None if job.cancelled() else job.result()

    scene.run.worker = replace(scene.run.worker, shutdown=Shutdown(0.0))
    answer = asyncio.run(stopped())
    if way == "stopped":
        assert answer is not None
        assert error_of(answer)["code"] == "cancelled"
    else:
        assert answer is None
    assert len(scene.kept) == 1
    scene.is_back()
    scene.run.worker = replace(scene.run.worker, shutdown=Shutdown(0.0))
    assert scene.run(payload)["status"] == "completed"
    assert scene.made == [0]


def test_refused_payloads_are_answered_at_once_beside_a_spool_full_of_videos(scene: Scene, tmp_path: Path) -> None:
    worker = scene.run.worker
    entry = worker.journal.accept("old", "d", today=datetime.now(UTC).date(), seeds=[1])
    for index in range(10):
        video = make_video(tmp_path / "job", bytes([index]))
        worker.spool.keep(video, entry, index, result_of(video, index, "old"))
    scene.double.always.update(dict.fromkeys(EVERYTHING, say_nothing))

    async def refused() -> list[Answer]:
        return await asyncio.gather(*(scene.run.start({"prompt": ""}, job_id=f"bad-{number}") for number in range(6)))

    with takes_at_most(20):
        answers = asyncio.run(refused())
    assert [answer["status"] for answer in answers] == ["failed"] * 6
    assert len(scene.kept) == 10
    assert scene.double.operations().count("put") <= 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_limit_of_the_worker_holds_while_its_storage_is_silent(bucket: Double, tmp_path: Path) -> None:
    """JOB_TIMEOUT_S, the stop signal, the next job, and the grace of SIGTERM."""
    environment = {**bucket.environment(), "JOB_TIMEOUT_S": "25", "SHUTDOWN_GRACE_S": "5"}
    request = small()
    with Platform() as platform, WorkerProcess(platform, tmp_path, environment) as worker:
        bucket.always.update(dict.fromkeys(EVERYTHING, say_nothing))
        with takes_at_most(25 + LAST_S + 10):
            answer = platform.wait_result(platform.submit(request, job_id="late"))
        assert json.loads(answer["error"])["code"] == "timeout"
        uploads = bucket.operations().count("put")
        stopped = platform.submit(request, job_id="stopped")
        worker.wait_until(lambda: bucket.operations().count("put") > uploads and "encode took" in worker.log)
        platform.stop(stopped)
        answer = platform.wait_result(stopped, 60)
        assert json.loads(answer["error"])["code"] in ("cancelled", "timeout")
        left = platform.submit(request, job_id="left")
        platform.wait_taken(left)
        worker.terminate()
        with takes_at_most(5 + LAST_S + 10):
            worker.wait()
        assert left not in platform.results
    bucket.always.clear()
    with Platform() as platform, WorkerProcess(platform, tmp_path, environment):
        for job_id in ("late", "left"):
            answer = platform.wait_result(platform.submit(request, job_id=job_id))
            assert answer["output"]["status"] == "completed"
