"""Sending, following and cancelling jobs, by both shells, against RunPod's API on loopback."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.client.conftest import FAST
from tests.kits.endpoint_double import (
    API_KEY,
    ENDPOINT_ID,
    EndpointDouble,
    State,
    completed,
    failed,
    in_progress,
    in_queue,
)
from tests.kits.loopback import Server, response, takes_at_most
from tests.kits.paid_endpoint import PaidEndpoint, answer_of, video_of
from videogen_client import (
    CancelRefused,
    Client,
    EndpointRefused,
    EndpointUnavailable,
    InvalidSignature,
    Job,
    JobNotFound,
    JobRefused,
    Progress,
    Timeout,
    UnexpectedAnswer,
    VideoFailed,
    VideoGenError,
    verify_webhook,
)
from videogen_client.core import RUN_LIMIT_BYTES
from worker.base.errors import InputFailed, InvalidRequest
from worker.jobs import answers

PAYLOAD = {"prompt": "a cat"}
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TRAINING = {"job_id": "a", "status": "completed", "dataset": {"clips": 12}, "loras": [], "timings": {"total": 5.0}}
BROKEN = answers.video_failure("a", 0, InputFailed("the server answered 404", path="reference_image_url"))


class Scripted(EndpointDouble):
    """Plays its script, and knows how to refuse to cancel."""

    def cancel(self, job_id: str) -> State:
        return {"id": job_id, "status": "COMPLETED"}


@pytest.fixture
def scripted() -> Any:
    with Scripted() as double:
        yield double


@pytest.fixture
def to_scripted(connect: Callable[..., Any], scripted: Scripted) -> Any:
    return connect(ENDPOINT_ID, API_KEY, base_url=scripted.url)


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


REFUSED = answers.refused_answer("a", InvalidRequest("is wrong", path="fps"), {})
SEVERAL = {**REFUSED, "problems": [{"path": "fps", "message": "is wrong"}, {"path": "seed", "message": "is wrong"}]}
ENDS: dict[str, tuple[State, type[VideoFailed], dict[str, Any]]] = {
    "the worker's error": (
        failed(json.dumps(BROKEN["error"])),
        VideoFailed,
        {"code": "input_failed", "path": "reference_image_url", "retryable": True},
    ),
    "a refusal": (failed(REFUSED["error"]), JobRefused, {"code": "invalid_request", "path": "fps", "retryable": False}),
    "several problems": (
        failed(SEVERAL["error"], SEVERAL),
        JobRefused,
        {"code": "invalid_request", "problems": SEVERAL["problems"]},
    ),
    "one of several videos": (
        completed(answers.job_answer("a", [{**BROKEN, "problems": SEVERAL["problems"]}], {})),
        VideoFailed,
        {"code": "input_failed", "problems": SEVERAL["problems"]},
    ),
    "a text": (
        failed("the worker died"),
        VideoFailed,
        {"code": "internal", "message": "the job failed: the worker died"},
    ),
    "of the SDK": (
        failed(json.dumps({"error_type": "x", "error_message": "no GPU", "error_traceback": "secret"})),
        VideoFailed,
        {"code": "internal", "message": "no GPU", "retryable": True},
    ),
    "cancelled": ({"status": "CANCELLED"}, VideoFailed, {"code": "cancelled", "retryable": True}),
    "RunPod's own timeout": ({"status": "TIMED_OUT"}, VideoFailed, {"code": "timeout", "retryable": True}),
}


@pytest.mark.parametrize(("end", "kind", "has"), ENDS.values(), ids=ENDS)
def test_a_job_without_a_video_is_a_typed_error(
    end: State, kind: type[VideoFailed], has: dict[str, Any], to_scripted: Any, scripted: Scripted
) -> None:
    scripted.plays(in_progress(3), end)
    with pytest.raises(VideoFailed) as caught:
        to_scripted.generate({**PAYLOAD, "job_id": "order-1"})
    assert type(caught.value) is kind
    assert {name: getattr(caught.value, name) for name in has} == has
    assert caught.value.job_id == "order-1"
    assert "secret" not in str(caught.value)


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


STATUSES: list[tuple[int, type[VideoGenError], bool, int]] = [
    (400, JobRefused, False, 1),
    (413, JobRefused, False, 1),
    (401, EndpointRefused, False, 1),
    (403, EndpointRefused, False, 1),
    (404, EndpointRefused, False, 1),
    (302, EndpointRefused, False, 1),
    (429, EndpointUnavailable, True, FAST.attempts),
    (500, EndpointUnavailable, True, FAST.attempts),
    (503, EndpointUnavailable, True, FAST.attempts),
]


@pytest.mark.parametrize(("status", "kind", "retryable", "requests"), STATUSES, ids=[str(row[0]) for row in STATUSES])
def test_what_the_endpoint_refuses_is_a_typed_error(
    status: int, kind: type[VideoGenError], retryable: bool, requests: int, client: Any, endpoint: PaidEndpoint
) -> None:
    endpoint.refuse["run"] = [status] * 20
    with pytest.raises(kind) as caught:
        client.submit({**PAYLOAD, "job_id": "order-1"})
    assert (caught.value.retryable, caught.value.job_id) == (retryable, "order-1")
    assert len(endpoint.requests("run")) == requests
    assert endpoint.url not in str(caught.value)


@pytest.mark.parametrize("verb", ["run", "status"])
def test_what_passes_is_tried_again(verb: str, client: Any, endpoint: PaidEndpoint) -> None:
    endpoint.refuse[verb] = [503, None, 429, 502]
    assert client.generate(PAYLOAD)["status"] == "completed"
    assert list(endpoint.paid.values()) == [1]


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


@pytest.mark.parametrize("drips", [False, True], ids=["says nothing", "a byte now and then"])
def test_a_server_that_hangs_costs_the_time_that_was_given(drips: bool, connect: Callable[..., Any]) -> None:
    def serve(connection: socket.socket, _request: bytes) -> None:
        if drips:
            server.drip(connection, iter([response(length=False), *[b" "] * 1000]), 0.02)
        else:
            server.hold()

    with Server(serve) as server, takes_at_most(8):
        client = connect(ENDPOINT_ID, API_KEY, base_url=server.url(""))
        with pytest.raises(EndpointUnavailable):
            client.submit(PAYLOAD, timeout_s=0.5)
        with pytest.raises(Timeout):
            client.result("job-1", timeout_s=0.5)


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"{}", b'{"id": 3, "status": 4}'], ids=str)
def test_what_is_no_answer_of_an_endpoint_says_so(body: bytes, connect: Callable[..., Any]) -> None:
    with Server(lambda connection, _: connection.sendall(response(body))) as server:
        client = connect(ENDPOINT_ID, API_KEY, base_url=server.url(""))
        with pytest.raises(UnexpectedAnswer):
            client.submit(PAYLOAD)
        with pytest.raises(UnexpectedAnswer):
            client.result("job-1")


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


@pytest.mark.parametrize("output", [None, "done", {"videos": 3}, {"videos": [4]}, {"videos": []}], ids=str)
def test_a_job_of_another_worker_says_so(output: object, to_scripted: Any, scripted: Scripted) -> None:
    scripted.plays(completed(output))
    with pytest.raises(VideoGenError):
        to_scripted.result("job-1")


def test_the_endpoint_says_when_to_come_again(connect: Callable[..., Any]) -> None:
    replies = [response(b"", status="429 Too Many", headers="Retry-After: 1"), response(b'{"id": "job-1"}')]
    with Server(lambda connection, _: connection.sendall(replies.pop(0))) as server:
        began = time.monotonic()
        assert connect(ENDPOINT_ID, API_KEY, base_url=server.url("")).submit(PAYLOAD).id == "job-1"
        assert time.monotonic() - began >= 1
        replies[:] = [response(b"", status="429 Too Many", headers="Retry-After: 900")]
        with takes_at_most(8), pytest.raises(EndpointUnavailable):
            connect(ENDPOINT_ID, API_KEY, base_url=server.url("")).submit(PAYLOAD)


@pytest.mark.parametrize(("over", "requests"), [(0, 1), (1, 0)])
def test_a_request_is_as_large_as_runpod_takes(over: int, requests: int, client: Any, endpoint: PaidEndpoint) -> None:
    empty = {"prompt": "a", "job_id": "b", "reference_image_url": ""}
    room = RUN_LIMIT_BYTES - len(json.dumps({"input": empty}))
    payload = {**empty, "reference_image_url": "c" * (room + over)}
    if over:
        with pytest.raises(JobRefused, match="behind a URL"):
            client.submit(payload)
    else:
        client.submit(payload)
    assert len(endpoint.requests("run")) == requests


@pytest.mark.parametrize(
    "arguments", [{}, {"endpoint_id": "abc"}, {"base_url": "localhost:8000"}, {"api_key": "key"}], ids=str
)
def test_a_client_of_nothing_is_refused(arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"api_key|base_url"):
        Client(**arguments)  # type: ignore[arg-type]


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    now = datetime.now(UTC)
    return {
        "Webhook-Id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body.decode()),
    }


BODY = b'{"type": "progress", "job_id": "a"}'
OTHER = "whsec_plJ3nmyCDGBKInavdOK15jsl01234567"


@pytest.mark.parametrize("secret", [SECRET, f"{OTHER} {SECRET}"], ids=["one", "two"])
def test_a_genuine_webhook_is_the_event(secret: str) -> None:
    assert verify_webhook(BODY, signed(BODY), secret) == {"type": "progress", "job_id": "a"}


FORGED: dict[str, tuple[bytes, dict[str, str], str]] = {
    "no headers": (BODY, {}, SECRET),
    "another secret": (BODY, signed(BODY), OTHER),
    "another body": (b'{"type": "failed"}', signed(BODY), SECRET),
    "old": (BODY, {**signed(BODY), "webhook-timestamp": "1600000000"}, SECRET),
    "no text": (b"\xff", signed(BODY), SECRET),
    "a broken signature": (BODY, {**signed(BODY), "webhook-signature": "v1"}, SECRET),
    "no secret": (BODY, signed(BODY), " "),
    "a secret that is none": (BODY, signed(BODY), "whsec_ä"),
}


@pytest.mark.parametrize(("body", "headers", "secret"), FORGED.values(), ids=FORGED)
def test_a_forged_webhook_is_refused(body: bytes, headers: dict[str, str], secret: str) -> None:
    with pytest.raises(InvalidSignature):
        Client.verify_webhook(body, headers, secret)
