"""Sending, following and cancelling jobs, by both shells, against RunPod's API on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import Scripted
from tests.kits.client_cases import BROKEN, TRAINING
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID, completed, failed, in_progress, in_queue
from tests.kits.loopback import Server, response
from tests.kits.paid_endpoint import PaidEndpoint, answer_of, video_of
from videogen_client import CancelRefused, EndpointRefused, Job, JobNotFound, JobRefused, Progress, Timeout, VideoFailed
from worker.base.errors import InvalidRequest
from worker.jobs import answers

PAYLOAD = {"prompt": "a cat"}


def test_a_job_is_sent_followed_and_answered(client: Any, endpoint: PaidEndpoint) -> None:
    answer = client.generate(PAYLOAD)
    (run,) = endpoint.requests("run")
    assert run.headers["authorization"] == f"Bearer {API_KEY}"
    assert {**PAYLOAD, "job_id": answer["videos"][0]["job_id"]} == run.body["input"]
    assert [video["status"] for video in answer["videos"]] == ["completed"]
    assert list(endpoint.paid.values()) == [1]
    assert len({seen.job_id for seen in endpoint.requests("status")}) == 1


def test_a_job_is_followed_by_its_id_alone(client: Any) -> None:
    job = client.submit({**PAYLOAD, "job_id": "order-1"})
    assert job.job_id == "order-1"
    assert client.status(job.id).status == "IN_QUEUE"
    assert client.result(job.id)["videos"][0]["job_id"] == "order-1"
    state = client.status(job)
    assert state.has_ended
    assert state.answer["status"] == "completed"


def test_progress_is_streamed_with_previews_each_once(to_scripted: Any, scripted: Scripted) -> None:
    shown = {"progress": 40, "status": "generating", "index": 0, "step": 4, "steps": 10, "eta_seconds": 7.5}
    preview = {"preview_url": "https://cdn/0.preview.webp", "preview_step": 4}
    running = {"status": "IN_PROGRESS", "output": {**shown, **preview}}
    answer = answer_of(video_of(scripted, "0.mp4", b"a"))
    scripted.plays(in_queue(), in_progress(), in_progress(7), running, running, completed(answer))
    seen = list(to_scripted.stream("job-1"))
    assert [each.percent for each in seen] == [7, 40, 100]
    assert seen[1] == Progress(40, "generating", 0, 4, 10, 7.5, "https://cdn/0.preview.webp", 4)
    assert [each.answer for each in seen] == [None, None, answer]


def test_a_part_that_was_made_is_an_answer(to_scripted: Any, scripted: Scripted) -> None:
    part = answer_of(video_of(scripted, "0.mp4", b"a"), BROKEN, status="partial")
    scripted.plays(completed(part))
    assert to_scripted.generate(PAYLOAD) == part
    with pytest.raises(VideoFailed, match=r"input_failed: .*404"):
        to_scripted.download(part["videos"][1], "never.mp4")


def test_a_training_is_an_answer_too(to_scripted: Any, scripted: Scripted) -> None:
    scripted.plays(in_progress(3), completed(TRAINING))
    settings = {"training_data_url": "https://example.com/style.zip"}
    assert to_scripted.train(settings, job_id="style-1") == TRAINING
    assert scripted.requests("run")[-1].body == {"input": {"train": settings, "job_id": "style-1"}}
    assert to_scripted.generate({"train": settings}) == TRAINING
    scripted.plays(failed(answers.refused_answer("a", InvalidRequest("is missing", path="train"), {})["error"]))
    with pytest.raises(JobRefused, match="train: is missing"):
        to_scripted.generate({"train": {}})


def test_a_lost_answer_is_asked_for_under_the_same_job_id(client: Any, endpoint: PaidEndpoint) -> None:
    endpoint.lose = {"run": 2, "status": 1}
    client.generate(PAYLOAD)
    sent = [seen.body["input"]["job_id"] for seen in endpoint.requests("run")]
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert list(endpoint.paid.values()) == [1]


def test_a_job_that_the_endpoint_forgot_is_sent_again_and_made_once(client: Any, endpoint: PaidEndpoint) -> None:
    job = client.submit(PAYLOAD)
    endpoint.forget()
    assert client.result(job)["videos"][0]["job_id"] == job.job_id
    assert list(endpoint.paid.values()) == [1]
    with pytest.raises(JobNotFound) as caught:
        client.result(Job("of-another-process"))
    assert caught.value.retryable


def test_a_late_success_is_not_lost(to_scripted: Any, scripted: Scripted) -> None:
    scripted.plays(in_progress(5))
    with pytest.raises(Timeout) as caught:
        to_scripted.generate({**PAYLOAD, "job_id": "order-1"}, timeout_s=0.1)
    assert caught.value.retryable
    answer = answer_of(video_of(scripted, "0.mp4", b"a"))
    scripted.plays(in_progress(99), completed(answer))
    assert to_scripted.result(caught.value.job) == answer
    assert len(scripted.requests("run")) == 1


def test_a_job_is_cancelled(client: Any, endpoint: PaidEndpoint) -> None:
    job = client.submit(PAYLOAD)
    assert client.cancel(job).status == "CANCELLED"
    assert endpoint.requests("cancel")[0].job_id == job.id


def test_a_cancellation_that_comes_too_late_keeps_the_answer(to_scripted: Any, scripted: Scripted) -> None:
    answer = answer_of(video_of(scripted, "0.mp4", b"a"))
    scripted.plays(completed(answer))
    assert to_scripted.cancel("job-1").answer == answer


@pytest.mark.parametrize("refusal", [[], [400], [404]], ids=str)
def test_a_cancellation_that_is_refused_says_so(
    refusal: list[int | None], to_scripted: Any, scripted: Scripted
) -> None:
    scripted.plays(in_progress(5))
    scripted.refuse["cancel"] = refusal
    with pytest.raises(CancelRefused):
        to_scripted.cancel("job-1")


def test_a_cancellation_without_the_right_key_is_refused(connect: Callable[..., Any], endpoint: PaidEndpoint) -> None:
    with pytest.raises(EndpointRefused):
        connect(ENDPOINT_ID, "another key", base_url=endpoint.url).cancel("job-1")


def test_a_local_worker_is_asked_by_post_and_runs_the_job_then(connect: Callable[..., Any]) -> None:
    done = json.dumps({"id": "test-1", "status": "COMPLETED", "output": answer_of({"status": "completed"})})
    gone = json.dumps({"id": "test-1", "status": "FAILED", "error": "Job ID not found"})
    sent = b'{"id": "test-1", "status": "IN_PROGRESS"}'
    replies = [sent, gone.encode(), sent, done.encode(), gone.encode()]
    with Server(lambda connection, _: connection.sendall(response(replies.pop(0)))) as server:
        local = connect(base_url=server.url(""))
        assert local.generate(PAYLOAD)["status"] == "completed"
        with pytest.raises(JobNotFound):
            local.status("test-1")
        with pytest.raises(CancelRefused):
            local.cancel("test-1")
    heads = [request.partition(b" HTTP")[0] for request in server.requests]
    assert heads == [b"POST /run", b"POST /status/test-1", b"POST /run", *[b"POST /status/test-1"] * 2]
    assert b"authorization" not in server.requests[0].lower()
