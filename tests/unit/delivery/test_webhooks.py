"""The channel against receivers that work; tests/faults/test_webhook_*.py have those that do not."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.kits.webhook_receiver import Handler, Received, Receiver
from tests.kits.webhooks import ALL, QUICK, Network, Volume, event_id
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.net import Opener

SECRETS = tuple("whsec_" + base64.b64encode(bytes([number]) * 24).decode() for number in (1, 2))
Open = Callable[..., Channel]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(tmp_path)


@pytest.fixture
async def open_channel(receiver: Receiver, volume: Volume) -> AsyncIterator[Open]:
    channels: list[Channel] = []

    def make(**options: object) -> Channel:
        arguments: dict[str, Any] = {
            "url": receiver.url,
            "events": ALL,
            "job_id": "abc",
            "total": 2,
            "payload_digest": "d1",
            "opener": Opener(("127.0.0.1",)),
            "secrets": (),
            "outbox": volume.outbox,
            "journal": volume.journal,
            "patience": QUICK,
            **options,
        }
        channels.append(Channel(**arguments))
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()


def failure(index: int | None) -> dict[str, object]:
    error = {"code": "input_failed", "message": "no answer", "path": None, "retryable": True}
    return {"index": index, "status": "failed", "job_id": "abc", "error": error}


def snapshots(receiver: Receiver) -> list[dict[str, Any]]:
    """The bodies as they arrived, but for what is new each time: the moment, and the id of a progress event."""
    events = []
    for event in receiver.events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("timestamp"))
        if event["type"] == "progress":
            assert re.fullmatch(r"evt_[0-9a-f]{32}", event.pop("event_id"))
        events.append(event)
    return events


async def test_the_three_webhooks_as_a_receiver_reads_them(receiver: Receiver, open_channel: Open) -> None:
    channel = open_channel()
    channel.progress(ProgressEvent(42, "generating", 1))
    await asyncio.to_thread(receiver.wait_for, 1)  # a final event overtakes progress that has not been sent
    assert await channel.completed(1, {"index": 1, "prompt": "été 雪"}) is True
    assert await channel.failed(0, failure(0), 422, "reference_image_url: no answer") is True
    assert await channel.failed(None, failure(None), 400, "prompt: is missing") is True
    assert snapshots(receiver) == [
        {"type": "progress", "job_id": "abc", "progress": 42, "status": "generating", "index": 1, "total": 2},
        {
            "status": True,
            "code": 200,
            "message": "Video Generated!",
            "data": {"index": 1, "prompt": "été 雪"},
            "type": "completed",
            "event_id": "evt_c89df78ae7d7dd07ea02be9e8332ce96",
            "index": 1,
            "total": 2,
        },
        {
            "status": False,
            "code": 422,
            "message": "reference_image_url: no answer",
            "data": failure(0),
            "type": "failed",
            "event_id": "evt_2f3250ac1a85d6430c00e7900cb5e484",
            "index": 0,
            "total": 2,
        },
        {
            "status": False,
            "code": 400,
            "message": "prompt: is missing",
            "data": failure(None),
            "type": "failed",
            "event_id": "evt_c90242f692362fd5a3459e772859d43d",
            "index": None,
            "total": 2,
        },
    ]
    headers = [
        {name: value for name, value in received.headers.items() if name in ("content-type", "user-agent")}
        for received in receiver.received
    ]
    assert headers == [{"content-type": "application/json", "user-agent": "videogen-runpod/0.1.0"}] * 4
    assert not [name for received in receiver.received for name in received.headers if name.startswith("webhook-")]


async def test_an_event_that_arrived_is_in_the_outbox_no_more(volume: Volume, open_channel: Open) -> None:
    assert await open_channel().completed(0, {}) is True
    assert volume.waiting() == []


async def test_every_event_is_signed_by_each_secret(receiver: Receiver, open_channel: Open) -> None:
    channel = open_channel(secrets=SECRETS)
    channel.progress(ProgressEvent(5, "generating", 0))
    await asyncio.to_thread(receiver.wait_for, 1)
    await channel.completed(0, {"prompt": "雪"})
    assert [event["type"] for event in receiver.events] == ["progress", "completed"]
    for received in receiver.received:
        for secret in SECRETS:
            event = Webhook(secret).verify(received.body, dict(received.headers))
            assert event["event_id"] == received.headers["webhook-id"]


@pytest.mark.parametrize("kind", sorted(ALL))
async def test_only_the_events_that_were_asked_for_are_sent(receiver: Receiver, open_channel: Open, kind: str) -> None:
    channel = open_channel(events=frozenset({kind}))
    channel.progress(ProgressEvent(5, "generating", 0))
    if kind == "progress":
        await asyncio.to_thread(receiver.wait_for, 1)
    assert await channel.completed(0, {}) is (kind == "completed")
    assert await channel.failed(1, failure(1), 422, "no") is (kind == "failed")
    await channel.close()
    assert [event["type"] for event in receiver.events] == [kind]


async def test_without_a_url_nothing_happens(open_channel: Open, tmp_path: Path) -> None:
    channel = open_channel(url=None)
    channel.progress(ProgressEvent(5, "generating", 0))
    assert await channel.completed(0, {}) is False
    assert await channel.failed(None, failure(None), 400, "no") is False
    assert not (tmp_path / "outbox").exists()


async def test_what_is_known_to_have_arrived_is_not_sent_again(
    receiver: Receiver, open_channel: Open, volume: Volume
) -> None:
    volume.journal.accept("abc", "d1", today=date(2025, 3, 1), seeds=[1, 2])
    assert await open_channel().completed(0, {}) is True
    redelivered = open_channel()
    assert [await redelivered.completed(index, {}) for index in (0, 1)] == [True, True]
    assert receiver.ids == [event_id(0), event_id(1)]
    # A failed video is tried again by a redelivery and reported again, under the id it had.
    for _ in range(2):
        assert await open_channel().failed(0, failure(0), 422, "no") is True
    assert len(receiver.received) == 4
    assert receiver.ids[2] == receiver.ids[3] not in receiver.ids[:2]


async def test_without_a_journal_a_redelivery_has_the_same_id(receiver: Receiver, open_channel: Open) -> None:
    for _ in range(2):
        assert await open_channel(journal=None, outbox=None).completed(0, {}) is True
    assert receiver.ids == [event_id(0)] * 2


async def test_final_events_go_out_in_the_order_of_the_calls(receiver: Receiver, open_channel: Open) -> None:
    others_wait = threading.Event()

    def slow_first(handler: Handler, received: Received, number: int) -> None:
        assert number > 1 or others_wait.wait(20)
        handler.answer(200)

    receiver.behaviour = slow_first
    channel = open_channel()
    sending = [asyncio.create_task(channel.completed(index, {})) for index in range(4)]
    await asyncio.to_thread(receiver.wait_for, 1)
    others_wait.set()
    assert await asyncio.gather(*sending) == [True] * 4
    assert receiver.ids == [event_id(index) for index in range(4)]


async def test_no_progress_follows_the_final_event_of_its_video(receiver: Receiver, open_channel: Open) -> None:
    channel = open_channel()
    for index in range(2):
        before = len(receiver.received)
        channel.progress(ProgressEvent(1, "generating", index))
        await asyncio.to_thread(receiver.wait_for, before + 1)
        for percent in range(40):
            channel.progress(ProgressEvent(percent, "generating", index))
        await channel.completed(index, {})
        channel.progress(ProgressEvent(99, "uploading", index))
    await channel.close()
    seen = [(event["index"], event["type"]) for event in receiver.events]
    for index in range(2):
        own = [kind for place, kind in seen if place == index]
        assert own[0] == "progress"
        assert own.index("completed") == len(own) - 1
    assert len(set(receiver.ids)) == len(receiver.ids)


async def test_the_caller_may_be_cancelled_and_the_event_is_sent(receiver: Receiver, open_channel: Open) -> None:
    let_go = threading.Event()

    def slow(handler: Handler, received: Received, number: int) -> None:
        assert let_go.wait(20)
        handler.answer(200)

    receiver.behaviour = slow
    channel = open_channel()
    waiting = asyncio.create_task(channel.completed(0, {}))
    await asyncio.to_thread(receiver.wait_for, 1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    let_go.set()
    assert await channel.completed(1, {}) is True
    assert receiver.ids == [event_id(0), event_id(1)]


async def test_a_result_that_is_not_json_does_not_raise(open_channel: Open, caplog: pytest.LogCaptureFixture) -> None:
    channel = open_channel()
    assert await channel.completed(0, {"prompt": "a secret prompt", "cost_usd": float("nan")}) is False
    assert await channel.completed(1, {}) is True
    assert "ValueError" in caplog.text
    assert "secret prompt" not in caplog.text


async def test_a_closed_channel_is_quiet(receiver: Receiver, open_channel: Open) -> None:
    channel = open_channel()
    await channel.close()
    await channel.close()
    channel.progress(ProgressEvent(5, "generating", 0))
    assert await channel.completed(0, {}) is False
    assert receiver.received == []


async def test_the_log_names_the_event_and_never_the_url(open_channel: Open, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "worker")
    channel = open_channel(url="https://one.example/token-in-path?key=value", opener=Network(500))
    assert await channel.completed(0, {"prompt": "a secret prompt"}) is False
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("worker.")]
    named = [line for line in ours if event_id(0) in line]
    assert len(named) == 6
    assert [line.split(" took ")[0] for line in ours if line not in named] == ["video 0: webhook"]
    for text in ("token-in-path", "one.example", "secret prompt"):
        assert text not in "\n".join(ours)
