"""The channel against a receiver that works; tests/faults/test_webhook_faults.py has those that do not."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from datetime import date
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from standardwebhooks import Webhook
from werkzeug import Request, Response

from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.envelopes import USER_AGENT, final_event_id
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import Patience
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.net import Opener

ALL = frozenset({"progress", "completed", "failed"})
QUICK = Patience(waits_s=(0.01,) * 4, attempt_s=5.0, event_s=10.0, job_s=20.0, least_s=0.0, progress_every_s=0.0)
SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 24).decode() for number in (1, 2))
Open = Callable[..., Channel]


@pytest.fixture
def receiver(httpserver: HTTPServer) -> HTTPServer:
    httpserver.expect_request("/hook", method="POST").respond_with_data("ok")
    return httpserver


@pytest.fixture
async def open_channel(httpserver: HTTPServer, tmp_path: Path) -> AsyncIterator[Open]:
    channels: list[Channel] = []
    state = StateFolder(tmp_path)

    def make(**options: object) -> Channel:
        arguments: dict[str, object] = {
            "url": httpserver.url_for("/hook"),
            "events": ALL,
            "job_id": "abc",
            "total": 2,
            "payload_digest": "d1",
            "opener": Opener(("127.0.0.1", "localhost")),
            "secrets": (),
            "outbox": Outbox(state),
            "journal": Journal(state),
            "patience": QUICK,
            **options,
        }
        channels.append(Channel(**arguments))
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()


def bodies(receiver: HTTPServer) -> list[dict[str, object]]:
    return [json.loads(request.data) for request, _ in receiver.log]


async def first_request(receiver: HTTPServer) -> None:
    """A final event overtakes progress that has not been sent: wait until it has."""
    deadline = time.monotonic() + 20
    while not receiver.log and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


def failure(index: int | None) -> dict[str, object]:
    error = {"code": "input_failed", "message": "no answer", "path": None, "retryable": True}
    return {"index": index, "status": "failed", "job_id": "abc", "error": error}


async def test_a_delivered_video_is_told(receiver: HTTPServer, open_channel: Open, tmp_path: Path) -> None:
    result = {"index": 1, "prompt": "été 雪"}
    assert await open_channel().completed(1, result) is True
    ((request, _),) = receiver.log
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"] == USER_AGENT
    assert "webhook-id" not in request.headers
    (body,) = bodies(receiver)
    assert body["data"] == result
    assert (body["status"], body["code"], body["type"], body["index"], body["total"]) == (True, 200, "completed", 1, 2)
    assert body["event_id"] == final_event_id("abc", "d1", 1, "completed")
    assert list((tmp_path / "outbox").iterdir()) == []


async def test_a_failed_video_and_a_failed_job_are_told(receiver: HTTPServer, open_channel: Open) -> None:
    channel = open_channel()
    assert await channel.failed(0, failure(0), 422, "reference_image_url: no answer") is True
    assert await channel.failed(None, failure(None), 400, "prompt: is missing") is True
    video, job = bodies(receiver)
    assert (video["status"], video["code"], video["message"]) == (False, 422, "reference_image_url: no answer")
    assert (video["index"], job["index"], job["code"]) == (0, None, 400)
    assert video["event_id"] != job["event_id"]


async def test_every_event_is_signed_by_each_secret(receiver: HTTPServer, open_channel: Open) -> None:
    channel = open_channel(secrets=SECRETS)
    channel.progress(ProgressEvent(5, "generating", 0))
    await first_request(receiver)
    await channel.completed(0, {"prompt": "雪"})
    assert [body["type"] for body in bodies(receiver)] == ["progress", "completed"]
    for request, _ in receiver.log:
        for secret in SECRETS:
            told = Webhook(secret).verify(request.data, dict(request.headers))
            assert told["event_id"] == request.headers["webhook-id"]


@pytest.mark.parametrize("kind", sorted(ALL))
async def test_only_the_events_that_were_asked_for_are_sent(
    receiver: HTTPServer, open_channel: Open, tmp_path: Path, kind: str
) -> None:
    channel = open_channel(events=frozenset({kind}))
    channel.progress(ProgressEvent(5, "generating", 0))
    if kind == "progress":
        await first_request(receiver)
    assert await channel.completed(0, {}) is (kind == "completed")
    assert await channel.failed(1, failure(1), 422, "no") is (kind == "failed")
    await channel.close()
    assert [body["type"] for body in bodies(receiver)] == [kind]


async def test_without_a_url_nothing_happens(open_channel: Open, tmp_path: Path) -> None:
    channel = open_channel(url=None)
    channel.progress(ProgressEvent(5, "generating", 0))
    assert await channel.completed(0, {}) is False
    assert await channel.failed(None, failure(None), 400, "no") is False
    assert not (tmp_path / "outbox").exists()


async def test_what_is_known_to_have_arrived_is_not_sent_again(
    receiver: HTTPServer, open_channel: Open, tmp_path: Path
) -> None:
    Journal(StateFolder(tmp_path)).accept("abc", "d1", today=date(2025, 3, 1), seeds=[1, 2])
    assert await open_channel().completed(0, {}) is True
    redelivered = open_channel()
    assert await redelivered.completed(0, {}) is True
    assert await redelivered.completed(1, {}) is True
    assert [body["index"] for body in bodies(receiver)] == [0, 1]
    # A failure is made anew by a redelivery and told anew, under the id it had.
    assert await open_channel().failed(0, failure(0), 422, "no") is True
    assert await open_channel().failed(0, failure(0), 422, "no") is True
    assert len({body["event_id"] for body in bodies(receiver)[2:]}) == 1
    assert len(receiver.log) == 4


async def test_without_a_journal_a_redelivery_has_the_same_id(receiver: HTTPServer, open_channel: Open) -> None:
    for _ in range(2):
        assert await open_channel(journal=None, outbox=None).completed(0, {}) is True
    assert len({body["event_id"] for body in bodies(receiver)}) == 1


async def test_final_events_go_out_in_the_order_of_the_calls(httpserver: HTTPServer, open_channel: Open) -> None:
    def slow_first(request: Request) -> Response:
        time.sleep(0.3 if request.get_json()["index"] == 0 else 0.0)
        return Response("ok")

    httpserver.expect_request("/hook").respond_with_handler(slow_first)
    channel = open_channel()
    assert await asyncio.gather(*(channel.completed(index, {}) for index in range(4))) == [True] * 4
    assert [body["index"] for body in bodies(httpserver)] == [0, 1, 2, 3]


async def test_no_progress_follows_the_final_event_of_its_video(receiver: HTTPServer, open_channel: Open) -> None:
    channel = open_channel()
    for index in range(2):
        for percent in range(40):
            channel.progress(ProgressEvent(percent, "generating", index))
            await asyncio.sleep(0.002)
        await channel.completed(index, {})
        channel.progress(ProgressEvent(99, "uploading", index))
    await asyncio.sleep(0.1)
    assert [body["type"] for body in bodies(receiver)].count("progress") > 0
    told = [(body["index"], body["type"]) for body in bodies(receiver)]
    for index in range(2):
        own = [kind for place, kind in told if place == index]
        assert own.index("completed") == len(own) - 1
    ids = [body["event_id"] for body in bodies(receiver)]
    assert len(set(ids)) == len(ids)


async def test_a_progress_event_has_the_shape_of_the_contract(receiver: HTTPServer, open_channel: Open) -> None:
    channel = open_channel()
    channel.progress(ProgressEvent(42, "generating", 1))
    await first_request(receiver)
    await channel.completed(1, {})
    told = bodies(receiver)[0]
    assert told.pop("event_id") != told.pop("timestamp")
    assert told == {
        "type": "progress",
        "job_id": "abc",
        "progress": 42,
        "status": "generating",
        "index": 1,
        "total": 2,
    }


async def test_who_waits_may_be_cancelled_and_the_event_is_told(httpserver: HTTPServer, open_channel: Open) -> None:
    def slow(request: Request) -> Response:
        time.sleep(0.3)
        return Response("ok")

    httpserver.expect_request("/hook").respond_with_handler(slow)
    channel = open_channel()
    waiting = asyncio.create_task(channel.completed(0, {}))
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await channel.completed(1, {}) is True
    assert [body["index"] for body in bodies(httpserver)] == [0, 1]


async def test_a_result_that_is_not_json_does_not_raise(
    receiver: HTTPServer, open_channel: Open, caplog: pytest.LogCaptureFixture
) -> None:
    channel = open_channel()
    assert await channel.completed(0, {"prompt": "a secret prompt", "cost_usd": float("nan")}) is False
    assert await channel.completed(1, {}) is True
    assert "ValueError" in caplog.text
    assert "secret prompt" not in caplog.text


async def test_a_closed_channel_is_quiet(receiver: HTTPServer, open_channel: Open) -> None:
    channel = open_channel()
    await channel.close()
    await channel.close()
    channel.progress(ProgressEvent(5, "generating", 0))
    assert await channel.completed(0, {}) is False
    assert receiver.log == []


async def test_the_log_names_the_event_and_never_the_url(
    httpserver: HTTPServer, open_channel: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "worker")
    httpserver.expect_request("/token-in-path").respond_with_data("no", 500)
    channel = open_channel(url=httpserver.url_for("/token-in-path?key=value"))
    assert await channel.completed(0, {"prompt": "a secret prompt"}) is False
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("worker.")]
    named = [line for line in ours if final_event_id("abc", "d1", 0, "completed") in line]
    assert len(named) == 6
    assert [line.split(" took ")[0] for line in ours if line not in named] == ["video 0: webhook"]
    for text in ("token-in-path", "localhost", "127.0.0.1", "secret prompt"):
        assert text not in "\n".join(ours)
