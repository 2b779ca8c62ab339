"""A storage that is down when a video is finished: the video is kept, and stored by a redelivery or another job."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.uploads import measure
from tests.flow.conftest import Receiver, Runner
from tests.kits.scene import Scene, error_of, small
from tests.kits.slow import slow
from worker.delivery.journal import Journal
from worker.delivery.storage.spaces import SpacesStorage
from worker.jobs import tidy


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_bad_weather_every_video_is_stored_whole_and_once(run: Runner, tmp_path: Path) -> None:
    """A sample of `python -m benchmarks.uploads --count 200`."""
    report = measure(run.worker, tmp_path / "state", count=10, seed=3, attempts=3)
    assert report.good, report
    assert report.failed_at_first >= 2
    assert report.faults["dead"] > 0
    assert report.in_parts == 5
