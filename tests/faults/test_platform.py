"""The real handler.py as a worker of a platform that stops jobs, ends workers and loses answers."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import url2pathname

import pytest

from tests.flow.conftest import small
from tests.kits.platform_double import Platform, WorkerProcess
from tests.kits.slow import slow
from tests.kits.webhook_receiver import Handler, Received, Receiver
from tests.kits.worker_process import ROOT
from worker.base import locks
from worker.base.files import StateFolder
from worker.delivery.webhooks.letter import Letter
from worker.delivery.webhooks.outbox import Outbox

# Much longer than any of these tests waits: 100 steps and the decode of 81 frames take a minute on two cores.
LONG = {"num_inference_steps": 100, "num_frames": 81, "width": 448}


@dataclass
class Site:
    """One worker, its platform, and a receiver of its webhooks."""

    platform: Platform
    worker: WorkerProcess
    receiver: Receiver
    home: Path

    def job(self, *videos: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {"webhook_url": self.receiver.url, "job_request_params": list(videos), **fields}

    def finals(self, job_id: str) -> list[dict[str, Any]]:
        return finals(self.receiver, job_id)


def finals(receiver: Receiver, job_id: str) -> list[dict[str, Any]]:
    events = [event for event in receiver.events if event["type"] != "progress"]
    return [event for event in events if event["data"]["job_id"] == job_id]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker that the tests share: each leaves it ready for the next."""
    home = tmp_path_factory.mktemp("shared")
    with Receiver() as receiver, Platform() as platform, WorkerProcess(platform, home) as worker:
        yield Site(platform, worker, receiver, home)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def stored(url: str) -> bytes:
    assert url.startswith("file://")
    return Path(url2pathname(url.removeprefix("file://"))).read_bytes()


def without_files(videos: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The videos of an answer as the events have them: without a bucket the files themselves are in the answer."""
    return [{name: value for name, value in video.items() if name != "video_base64"} for video in videos]


def test_an_answer_reaches_the_platform_in_the_contracts_shape(site: Site) -> None:
    job_id = site.platform.submit(site.job(small(num_frames=33), small(seed=2)))
    result = site.platform.wait_result(job_id)
    assert set(result) == {"output"}
    answer = result["output"]
    assert set(answer) == {"job_id", "status", "videos", "timings"}
    assert (answer["job_id"], answer["status"]) == (job_id, "completed")
    assert [(video["index"], video["num_frames"]) for video in answer["videos"]] == [(0, 33), (1, 5)]
    for video in answer["videos"]:
        assert hashlib.sha256(stored(video["video_url"])).hexdigest() == video["sha256"]
        # Without a bucket the file itself is in the answer, and in no event.
        assert hashlib.sha256(base64.b64decode(video.pop("video_base64"))).hexdigest() == video["sha256"]
    assert [event["data"] for event in site.finals(job_id)] == answer["videos"]


@pytest.mark.parametrize("frames", [5, *slow(33)])
def test_progress_never_goes_down_nor_comes_after_the_answer_where_the_platform_is_slow(
    site: Site, frames: int
) -> None:
    site.platform.progress_takes_s = [1.0]
    job_id = site.platform.submit(small(num_frames=frames))
    site.platform.wait_result(job_id)
    told = [update["progress"] for update in site.platform.progress[job_id]]
    assert told[0] == 0
    assert told == sorted(told)
    posts = [post for post in site.platform.posts if post.job_id == job_id]
    assert [post.is_progress for post in posts] == [True] * len(told) + [False]


def test_a_stopped_job_ends_within_a_step_and_the_next_one_is_exact(site: Site) -> None:
    job_id = site.platform.submit(site.job(small(), small(**LONG), small()))
    site.worker.wait_until(lambda: "video 1: text_to_video, prompt" in lines_of(site.worker, job_id))
    began = time.monotonic()
    site.platform.stop(job_id)
    answer = site.platform.wait_result(job_id)["output"]
    assert time.monotonic() - began < 100
    assert answer["status"] == "partial"
    assert [video["status"] for video in answer["videos"]] == ["completed", "failed", "failed"]
    assert [video["error"]["code"] for video in answer["videos"][1:]] == ["cancelled", "cancelled"]
    assert [(event["code"], event["index"]) for event in site.finals(job_id)] == [(200, 0), (499, 1), (499, 2)]
    following = site.platform.wait_result(site.platform.submit(small()))["output"]
    assert following["videos"][0]["sha256"] == answer["videos"][0]["sha256"]


def lines_of(worker: WorkerProcess, job_id: str) -> str:
    return "\n".join(line for line in worker.log.splitlines() if line.endswith(f"job={job_id}"))


@pytest.mark.slow
def test_an_answer_that_the_platform_loses_is_found_by_webhook_file_and_journal(site: Site) -> None:
    payload = site.job(small(seed=None))
    site.platform.result_status = 500
    try:
        job_id = site.platform.submit(payload)
        given_up = f"{job_id} | Finished."  # the SDK's last word on a result, sent or lost; progress has none
        site.worker.wait_until(lambda: site.worker.log.count(given_up) == 1)
    finally:
        site.platform.result_status = 200
    (event,) = site.finals(job_id)
    assert hashlib.sha256(stored(event["data"]["video_url"])).hexdigest() == event["data"]["sha256"]
    with site.platform.results_down():
        site.platform.submit(payload, job_id)
        site.worker.wait_until(lambda: site.worker.log.count(given_up) == 2)
    assert job_id not in site.platform.results
    site.platform.submit(payload, job_id)
    assert without_files(site.platform.wait_result(job_id)["output"]["videos"]) == [event["data"]]
    assert lines_of(site.worker, job_id).count("video 0: text_to_video") == 1
    assert len(site.finals(job_id)) == 1


def test_an_unforeseen_failure_is_told_without_detail_and_the_next_job_works(site: Site) -> None:
    away = site.worker.temporary.with_name("away")
    site.worker.temporary.rename(away)
    try:
        job_id = site.platform.submit(site.job(small()))
        result = site.platform.wait_result(job_id)
    finally:
        away.rename(site.worker.temporary)
    error = json.loads(result["error"])
    assert (error["code"], error["retryable"]) == ("internal", True)
    assert (result["output"]["status"], result["output"]["videos"]) == ("failed", [])
    (event,) = site.finals(job_id)
    assert (event["code"], event["data"]["error"]) == (500, error)
    told = json.dumps([result, event])
    assert not any(word in told for word in ("Traceback", str(site.home), "FileNotFoundError"))
    assert site.platform.wait_result(site.platform.submit(small()))["output"]["status"] == "completed"


@pytest.mark.parametrize(
    ("odd", "status"),
    [
        ({"guidance_scale": float("nan")}, "failed"),
        ({"guidance_scale": 1e400}, "failed"),
        ({"guidance_scale": 5.000000000000001, "flow_shift": 24.999999999999996}, "completed"),
        ({"an_unknown_field": float("inf"), "another": [float("nan")]}, "completed"),
        ({"unknown \ud800 surrogate": 1}, "completed"),
        ({"prompt": "a \ud800 surrogate"}, "failed"),
    ],
    ids=["nan", "infinity", "digits", "unknown", "surrogate-name", "surrogate-prompt"],
)
def test_odd_values_are_answered_in_valid_json(site: Site, odd: dict[str, object], status: str) -> None:
    job_id = site.platform.submit(site.job(small(**odd)))
    result = site.platform.wait_result(job_id)  # strict: NaN and Infinity are refused
    assert result["output"]["status"] == status
    json.dumps(site.finals(job_id), allow_nan=False)
    assert ("error" in result) == (status == "failed")


@pytest.mark.slow
def test_sigterm_leaves_a_long_job_to_another_worker_behind_its_last_finished_video(
    platform: Platform, receiver: Receiver, tmp_path: Path
) -> None:
    longer = small(num_inference_steps=20, num_frames=33, seed=None)
    payload = {"webhook_url": receiver.url, "job_request_params": [small(), longer]}
    with WorkerProcess(platform, tmp_path, {"SHUTDOWN_GRACE_S": "0.2"}) as worker:
        job_id = platform.submit(payload)
        worker.wait_until(lambda: bool(finals(receiver, job_id)) and "video 1: text_to_video" in worker.log)
        worker.terminate()
        waiting = platform.submit(small())
        assert worker.wait() == 0
    assert platform.results == {}
    assert platform.queued == [waiting]
    (told,) = finals(receiver, job_id)
    assert (told["type"], told["index"]) == ("completed", 0)
    platform.submit(payload, job_id)
    with WorkerProcess(platform, tmp_path) as worker:
        answer = platform.wait_result(job_id)["output"]
        assert platform.wait_result(waiting)["output"]["status"] == "completed"
        assert "video 0: text_to_video" not in lines_of(worker, job_id)
    assert answer["status"] == "completed"
    videos = without_files(answer["videos"])
    assert videos[0] == told["data"]
    assert [event["data"] for event in finals(receiver, job_id)] == videos


@pytest.mark.slow
def test_sigterm_lets_a_job_finish_that_fits_into_the_grace(platform: Platform, tmp_path: Path) -> None:
    with WorkerProcess(platform, tmp_path, {"SHUTDOWN_GRACE_S": "60"}) as worker:
        job_id = platform.submit(small(num_frames=17))
        worker.wait_until(lambda: "video 0: text_to_video" in worker.log)
        worker.terminate()
        waiting = platform.submit(small())
        assert worker.wait() == 0
    assert platform.results[job_id][0]["output"]["status"] == "completed"
    assert platform.queued == [waiting]


@pytest.mark.slow
def test_sigterm_ends_an_idle_worker_though_its_polls_are_held(platform: Platform, tmp_path: Path) -> None:
    platform.poll_s = 300.0
    with WorkerProcess(platform, tmp_path, fresh=True) as worker:
        worker.terminate()
        assert worker.wait() == 0
        waiting = platform.submit(small())
    assert platform.queued == [waiting]
    assert platform.pings


@pytest.mark.slow
def test_the_end_of_a_worker_waits_for_what_it_owes_and_for_nothing_else(platform: Platform, tmp_path: Path) -> None:
    """Python would take every module apart at the end, which lasts seconds with torch loaded."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        f"""
import atexit, os, pathlib
class Apart:
    def __del__(self, path=pathlib.Path({str(tmp_path)!r}) / f"taken-apart-{{os.getpid()}}"):
        path.touch()
kept = Apart()
atexit.register((pathlib.Path({str(tmp_path)!r}) / f"at-exit-{{os.getpid()}}").touch)
"""
    )
    environment = {"PYTHONPATH": f"{site}:{ROOT}"}
    with WorkerProcess(platform, tmp_path, environment, fresh=True) as worker:
        assert list(worker.temporary.glob("videogen-demo-*"))
        worker.terminate()
        assert worker.wait() == 0
        assert not list(worker.temporary.glob("videogen-*"))
        pid = worker.process.pid  # its short-lived children begin and end as any other Python
    assert (tmp_path / f"at-exit-{pid}").exists()
    assert not (tmp_path / f"taken-apart-{pid}").exists()


@pytest.mark.slow
def test_an_event_that_failed_while_the_worker_started_can_be_sent_by_others(
    platform: Platform, tmp_path: Path
) -> None:
    """The SDK forks a heartbeat at the start: what is locked at that moment stays locked while the worker lives."""

    def answer_late(handler: Handler, received: Received, number: int) -> None:
        time.sleep(3.0)
        handler.answer(503)

    outbox = Outbox(StateFolder(tmp_path / "state"))
    with Receiver(answer_late) as receiver:
        letter = Letter(job_id="earlier", event_id="evt_1", url=receiver.url, body="{}", created_at=time.time())
        place = outbox.put(letter)
        assert place is not None

        def is_free() -> bool:
            try:
                with locks.claimed(place):
                    return True
            except BlockingIOError:
                return False

        with WorkerProcess(platform, tmp_path) as worker:
            worker.wait_until(lambda: len(receiver.received) == 1)
            assert not is_free()
            worker.wait_until(is_free, 15)
            assert platform.pings
