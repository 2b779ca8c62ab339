"""A storage that is down when a video is finished, with the real client against an S3 server that fails on command.

The full run of the last test is `python -m benchmarks.uploads --count 200`; this is a sample of it.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.uploads import measure
from tests.flow.conftest import Answer, Receiver, Runner
from tests.flow.conftest import small as small_request
from tests.kits.delivery import make_video, result_of
from tests.kits.loopback import takes_at_most
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.s3_double import BUCKET, Double, Fault, Handler, drip, reset, say_nothing, serving, status
from tests.kits.slow import slow
from worker.base.files import StateFolder
from worker.base.sigterm import Shutdown
from worker.delivery.journal import Journal
from worker.delivery.spool import Spool
from worker.delivery.storage import video_key
from worker.delivery.storage.spaces import SpacesStorage
from worker.delivery.storage.spaces_client import make_client
from worker.delivery.storage.spaces_place import place_of
from worker.engine import Engine, Video
from worker.jobs import make, tidy
from worker.jobs.deliver import LAST_S
from worker.jobs.services import Services
from worker.media import VideoFile

ROOT = Path(__file__).parents[2]
EVERYTHING = ("put", "head", "create", "part", "complete", "abort")


def small(**fields: Any) -> dict[str, Any]:
    return small_request(num_inference_steps=1, **fields)


@dataclass
class Scene:
    """One worker whose videos go to the double, and what its engine has made."""

    run: Runner
    double: Double
    state: Path
    made: list[int] = field(default_factory=list)

    def dies(self, where: str = "") -> None:
        """Every request whose path holds `where` meets a reset connection."""

        def fault(handler: Handler) -> bool:
            return where in handler.path and reset(handler)

        self.double.always.update(dict.fromkeys(EVERYTHING, fault))

    def is_back(self) -> None:
        self.double.always.clear()

    def object(self, job_id: str, index: int = 0) -> bytes:
        (body,) = [s.body for path, s in self.double.objects.items() if path.endswith(f"/{job_id}/{index}.mp4")]
        return body

    @property
    def kept(self) -> list[Path]:
        folder = self.state / "spool"
        return sorted(folder.glob("*.mp4")) if folder.is_dir() else []

    def another_worker(self) -> Services:
        state = StateFolder(self.state)
        return replace(self.run.worker, journal=Journal(state), spool=Spool(state, Journal(state)))


@pytest.fixture
def double() -> Iterator[Double]:
    with serving() as running:
        yield running


@pytest.fixture
def make_scene(
    double: Double,
    make_runner: Callable[[Mapping[str, str]], Runner],
    engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Scene]]:
    clients = []
    generate = Engine.generate

    def make(**options: Any) -> Scene:
        place = place_of(double.endpoint_url, BUCKET)
        clients.append(make_client(place, "key", "secret", total_max_attempts=2))
        runner = make_runner({})
        runner.worker = replace(runner.worker, storage=SpacesStorage(clients[-1], place, **options))
        scene = Scene(runner, double, tmp_path / "state")

        def counted(self: Engine, video: Video, **more: Any) -> Any:
            scene.made.append(video.request.index)
            return generate(self, video, **more)

        monkeypatch.setattr(Engine, "generate", counted)
        return scene

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene()


def error_of(answer: Answer, index: int = 0) -> dict[str, Any]:
    error: dict[str, Any] = answer["videos"][index]["error"]
    return error


def test_a_dead_storage_fails_the_job_and_keeps_the_video_for_its_redelivery(scene: Scene, receiver: Receiver) -> None:
    payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [small(seed=None)]}
    scene.dies()
    answer = scene.run(payload)
    error = error_of(answer)
    assert (answer["status"], error["code"], error["retryable"]) == ("failed", "upload_failed", True)
    assert json.loads(answer["error"]) == error
    (event,) = receiver.of_type("failed")
    assert (event["code"], event["data"]["error"]["retryable"]) == (502, True)
    assert scene.double.objects == {}
    (kept,) = scene.kept
    sha256 = hashlib.sha256(kept.read_bytes()).hexdigest()

    again = scene.run(payload)  # still down
    assert error_of(again)["code"] == "upload_failed"
    assert scene.kept == [kept]

    scene.is_back()
    answer = scene.run(payload)
    assert answer["status"] == "completed"
    (video,) = answer["videos"]
    assert video["sha256"] == sha256 == hashlib.sha256(scene.object("one")).hexdigest()
    assert video["video_url"].startswith(scene.double.endpoint_url)
    assert video["thumbnail_url"].endswith("/one/0.jpg")
    stages = {"inputs", "load", "text", "generate", "encode", "upload", "waiting"}
    assert set(video["timings"]) == {*stages, "total"}
    assert video["timings"]["total"] == pytest.approx(sum(video["timings"][stage] for stage in stages), abs=0.005)
    assert scene.made == [0]
    (event,) = receiver.of_type("completed")
    assert event["data"] == video
    assert receiver.events[-1] == event
    assert list((scene.state / "spool").iterdir()) == []

    assert scene.run(payload)["videos"] == [video]
    assert len(receiver.of_type("completed")) == 1


def test_another_workers_tidy_stores_it_quietly_and_the_redelivery_answers_it(scene: Scene, receiver: Receiver) -> None:
    payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [small()]}
    scene.dies()
    scene.run(payload)
    told = len(receiver.events)
    asyncio.run(tidy.tidy(scene.another_worker()))
    assert len(scene.kept) == 1
    scene.is_back()
    asyncio.run(tidy.tidy(scene.another_worker()))
    assert scene.kept == []
    assert (
        len(receiver.events) == told
    )  # the receiver was told `failed`: it is told no more until it sends the job again
    stored = scene.object("one")
    scene.double.seen.clear()
    (video,) = scene.run(payload)["videos"]
    assert (video["status"], video["sha256"]) == ("completed", hashlib.sha256(stored).hexdigest())
    assert scene.double.operations() == ["head"]
    assert scene.made == [0]
    assert [event["data"] for event in receiver.of_type("completed")] == [video]


def test_the_next_job_stores_what_the_one_before_could_not(scene: Scene) -> None:
    scene.dies()
    scene.run({"job_id": "one", "job_request_params": [small()]})
    scene.is_back()
    scene.run({"job_id": "two", "job_request_params": [small(seed=2)]})
    assert scene.kept == []
    assert len(scene.object("one")) > 0
    assert scene.made == [0, 0]


@pytest.mark.slow
def test_only_the_videos_that_were_not_stored_are_kept(scene: Scene) -> None:
    payload = {"job_id": "three", "job_request_params": [small(seed=seed) for seed in range(3)]}
    scene.dies("/1.mp4")
    first = scene.run(payload)
    assert first["status"] == "partial"
    assert [video["status"] for video in first["videos"]] == ["completed", "failed", "completed"]
    assert len(scene.kept) == 1
    scene.is_back()
    second = scene.run(payload)
    assert second["status"] == "completed"
    assert [second["videos"][index] for index in (0, 2)] == [first["videos"][index] for index in (0, 2)]
    for index, video in enumerate(second["videos"]):
        assert video["sha256"] == hashlib.sha256(scene.object("three", index)).hexdigest()
    assert sorted(scene.made) == [0, 1, 2]


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


@pytest.mark.slow
def test_a_video_that_tidy_stores_while_the_job_is_being_accepted_is_not_made_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    payload = {"job_id": "one", "job_request_params": [small()]}
    scene.dies()
    scene.run(payload)
    scene.is_back()
    other = scene.another_worker()
    accept = Journal.accept

    def late(self: Journal, *arguments: Any, **options: Any) -> Any:
        entry = accept(self, *arguments, **options)
        other.spool.drain(other.storage)
        return entry

    monkeypatch.setattr(Journal, "accept", late)
    assert scene.run(payload)["status"] == "completed"
    assert scene.made == [0]


@pytest.mark.slow
def test_an_unwritable_state_folder_changes_no_answer(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the way")
    payload = {"job_id": "one", "job_request_params": [small()]}
    scene.dies()
    assert error_of(scene.run(payload))["code"] == "upload_failed"
    scene.is_back()
    assert scene.run(payload)["status"] == "completed"
    assert scene.made == [0, 0]


# --- a storage that is silent, or says a byte now and then


@pytest.mark.parametrize(
    ("fault", "way"),
    [
        (say_nothing, "stopped"),
        *slow((say_nothing, "shut down"), (drip, "stopped"), (drip, "shut down")),
    ],
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


@pytest.mark.parametrize("failure", [RecursionError, *slow(ZeroDivisionError)])
def test_a_failure_of_any_kind_keeps_the_video(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    payload = {"job_id": "one", "job_request_params": [small()]}
    with monkeypatch.context() as broken:
        broken.setattr(SpacesStorage, "store", fail)
        assert scene.run(payload)["status"] == "failed"
    assert len(scene.kept) == 1
    assert scene.run(payload)["status"] == "completed"
    assert scene.made == [0]


# --- two workers that make one job


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


# --- a finished video, asked for again


@pytest.mark.slow
def test_a_redelivered_job_answers_presigned_urls_that_are_good(
    make_scene: Callable[..., Scene], receiver: Receiver
) -> None:
    payload = {"job_id": "one", "webhook_url": receiver.url, "job_request_params": [small(), small(thumbnail=False)]}
    scene = make_scene(acl="private", presign_expiry_s=11)
    first = scene.run(payload)["videos"]
    later = make_scene(acl="private", presign_expiry_s=22)  # as 11 s later, when the recorded ones are bad
    second = later.run(payload)["videos"]
    for old, new, suffixes in zip(first, second, ((".mp4", ".jpg"), (".mp4",)), strict=True):
        urls = ("video_url", "thumbnail_url")[: len(suffixes)]
        for name, suffix in zip(urls, suffixes, strict=True):
            for video, expires in ((old, "11"), (new, "22")):
                assert urlsplit(video[name]).path.endswith(suffix)
                assert parse_qs(urlsplit(video[name]).query)["X-Amz-Expires"] == [expires]
        assert {**new, **{name: old[name] for name in urls}} == old
    assert second[1]["thumbnail_url"] is None
    assert later.made == []


@pytest.mark.slow  # tests/unit/jobs has it without an engine
def test_a_finished_video_that_was_deleted_from_the_bucket_is_made_again(scene: Scene) -> None:
    payload = {"job_id": "one", "job_request_params": [small(), small(seed=2)]}
    first = scene.run(payload)
    gone = next(path for path in scene.double.objects if path.endswith("/one/1.mp4"))
    del scene.double.objects[gone]
    second = scene.run(payload)
    assert second["status"] == "completed"
    assert scene.made == [0, 1, 1]
    assert second["videos"][0] == first["videos"][0]
    assert hashlib.sha256(scene.object("one", 1)).hexdigest() == second["videos"][1]["sha256"]


@pytest.mark.parametrize(
    "fault",
    [
        reset,
        *slow(status(503, "SlowDown"), status(403, "AccessDenied")),
    ],
)
def test_a_storage_that_cannot_be_asked_costs_a_redelivered_job_nothing(scene: Scene, fault: Any) -> None:
    payload = {"job_id": "one", "job_request_params": [small()]}
    first = scene.run(payload)
    scene.double.always.update(dict.fromkeys(EVERYTHING, fault))
    assert scene.run(payload)["videos"] == first["videos"]
    assert scene.made == [0]


# --- many, and by several workers

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
def test_two_workers_that_wake_together_upload_every_video_once(double: Double, tmp_path: Path) -> None:
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
    command = [sys.executable, "-c", DRAIN, str(tmp_path / "state"), double.endpoint_url, BUCKET]
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
    assert double.operations().count("put") == 12
    for job_id, content in contents.items():
        assert double.objects[f"/{BUCKET}/{video_key(job_id, 0, day)}.mp4"].body == content
        entry = journal.entry(job_id)
        assert entry is not None
        assert entry.finished[0]["video_url"].endswith(f"/{job_id}/0.mp4")
    assert list((tmp_path / "state" / "spool").iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_bad_weather_every_video_is_stored_whole_and_once(run: Runner, tmp_path: Path) -> None:
    report = measure(run.worker, tmp_path / "state", count=10, seed=3, attempts=3)
    assert report.good, report
    assert report.failed_at_first >= 2
    assert report.faults["dead"] > 0
    assert report.in_parts == 5


# --- the real worker


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_limit_of_the_worker_holds_while_its_storage_is_silent(double: Double, tmp_path: Path) -> None:
    """JOB_TIMEOUT_S, the stop signal, the next job, and the grace of SIGTERM."""
    environment = {
        **double.environment(),
        "JOB_TIMEOUT_S": "25",
        "SHUTDOWN_GRACE_S": "5",
    }
    request = small_request(num_inference_steps=1)
    with Platform() as platform, WorkerProcess(platform, tmp_path, environment) as worker:
        double.always.update(dict.fromkeys(EVERYTHING, say_nothing))
        with takes_at_most(25 + LAST_S + 10):
            answer = platform.wait_result(platform.submit(request, job_id="late"))
        assert json.loads(answer["error"])["code"] == "timeout"
        uploads = double.operations().count("put")
        stopped = platform.submit(request, job_id="stopped")
        worker.wait_until(lambda: double.operations().count("put") > uploads and "encode took" in worker.log)
        platform.stop(stopped)
        answer = platform.wait_result(stopped, 60)
        assert json.loads(answer["error"])["code"] in ("cancelled", "timeout")
        left = platform.submit(request, job_id="left")
        platform.wait_taken(left)
        worker.terminate()
        with takes_at_most(5 + LAST_S + 10):
            worker.wait()
        assert left not in platform.results
    double.always.clear()
    with Platform() as platform, WorkerProcess(platform, tmp_path, environment):
        for job_id in ("late", "left"):
            answer = platform.wait_result(platform.submit(request, job_id=job_id))
            assert answer["output"]["status"] == "completed"
