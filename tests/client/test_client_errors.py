"""What the client raises: a job that failed, an endpoint that refuses, hangs, or is none."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.client.conftest import FAST, Scripted
from tests.kits.client_cases import ENDS
from tests.kits.endpoint_double import API_KEY, ENDPOINT_ID, State, completed, in_progress
from tests.kits.loopback import Server, response, takes_at_most
from tests.kits.paid_endpoint import PaidEndpoint
from videogen_client import (
    Client,
    EndpointRefused,
    EndpointUnavailable,
    JobRefused,
    Timeout,
    UnexpectedAnswer,
    VideoFailed,
    VideoGenError,
)
from videogen_client.core import RUN_LIMIT_BYTES

PAYLOAD = {"prompt": "a cat"}


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
