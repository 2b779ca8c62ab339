"""Receivers that fail, redirect, hang or ask for patience: how often and how long each event is tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.kits.webhook_receiver import Behaviour, Handler, Received, Receiver
from tests.kits.webhooks import (
    QUICK,
    Clock,
    Network,
    Open,
    Volume,
    arrived,
    event_id,
    failing,
    hang,
    send_rest,
)
from worker.delivery.webhooks.postman import PATIENCE, Patience
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.net import Opener, PostAnswer


async def test_four_failures_and_then_success_is_one_event(volume: Volume, open_channel: Open) -> None:
    network = Network(*[500] * 4, 200)
    assert await open_channel(opener=network).completed(0, {"n": 1}) is True
    assert network.ids == [event_id(0)] * 5
    assert len(set(network.bodies)) == 1
    assert volume.waiting() == []
    assert volume.journal.has_arrived("abc", event_id(0))


async def test_five_failures_use_the_attempts_up_and_keep_the_event(volume: Volume, open_channel: Open) -> None:
    network = Network(*[500] * 5, 200)
    assert await open_channel(opener=network).completed(0, {"n": 1}) is False
    assert len(network.ids) == 5
    assert volume.waiting() == [event_id(0)]
    assert not volume.journal.has_arrived("abc", event_id(0))
    await send_rest(volume, network)
    assert network.ids == [event_id(0)] * 6
    assert volume.waiting() == []
    assert volume.journal.has_arrived("abc", event_id(0))


def test_the_waits_double_within_the_35_seconds_of_the_contract() -> None:
    assert PATIENCE.waits_s == (1.0, 2.0, 4.0, 8.0)
    assert (PATIENCE.attempt_s, PATIENCE.event_s, PATIENCE.job_s) == (15.0, 35.0, 60.0)


@pytest.mark.parametrize("kept", [True, False], ids=["outbox", "no outbox"])
async def test_a_silent_receiver_costs_a_job_60_seconds_and_no_more(
    volume: Volume, open_channel: Open, kept: bool
) -> None:
    clock = Clock()
    network = Network(None, clock=clock)
    options = {"opener": network, "clock": clock, "patience": replace(PATIENCE, waits_s=(0.0,) * 4)}
    channel = open_channel(outbox=volume.outbox if kept else None, **options)
    assert not any([await channel.completed(index, {}) for index in range(5)])
    # 35 s of the first event, then one attempt each in what is left of the job's 60 s.
    assert network.timeouts == [15.0, 15.0, 5.0, 15.0, 10.0]
    order = [0, 0, 0, 0, 0] if kept else [0, 0, 0, 1, 2]
    assert network.ids == [event_id(index) for index in order]
    assert volume.waiting() == ([event_id(index) for index in range(5)] if kept else [])


async def test_a_receiver_that_answers_again_has_all_attempts_again(open_channel: Open) -> None:
    clock = Clock()
    network = Network(None, None, None, 200, None, clock=clock)
    patience = replace(PATIENCE, waits_s=(0.0,) * 4)
    channel = open_channel(outbox=None, opener=network, clock=clock, patience=patience)
    assert [await channel.completed(index, {}) for index in range(5)] == [False, True, False, False, False]
    assert network.timeouts == [15.0, 15.0, 5.0, 15.0, 15.0, 15.0, 5.0, 15.0, 10.0]


async def test_later_events_of_a_dead_job_are_tried_once_and_in_order(volume: Volume, open_channel: Open) -> None:
    network = Network(*[500] * 7, 200)
    channel = open_channel(opener=network)
    # Five attempts for the first, one with the head of the line for the second and the third.
    assert [await channel.completed(index, {}) for index in range(5)] == [False, False, False, True, True]
    assert network.ids == [event_id(0)] * 8 + [event_id(index) for index in (1, 2, 3, 4)]
    assert volume.waiting() == []
    assert all(volume.journal.has_arrived("abc", event_id(index)) for index in range(5))


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_a_failure_and_not_followed(open_channel: Open, volume: Volume, status: int) -> None:
    with Receiver() as target:

        def redirect(handler: Handler, received: Received, number: int) -> None:
            handler.answer(status, Location=target.url)

        with Receiver(redirect) as receiver:
            assert await open_channel(receiver.url).completed(0, {}) is False
            assert len(receiver.received) == 5
        assert target.received == []
    assert volume.waiting() == [event_id(0)]


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 503])
async def test_every_other_status_is_tried_again(open_channel: Open, status: int) -> None:
    network = Network(status, 200)
    assert await open_channel(opener=network).completed(0, {}) is True
    assert len(network.ids) == 2


async def test_410_ends_it_for_good(volume: Volume, open_channel: Open) -> None:
    network = Network(410)
    channel = open_channel(opener=network)
    assert [await channel.completed(index, {}) for index in (0, 1)] == [False, False]
    channel.progress(ProgressEvent(5, "generating", 2))
    await channel.close()
    assert volume.waiting() == []
    await send_rest(volume, network)
    await open_channel(opener=network).completed(0, {})  # a redelivered job does not send it again either
    assert network.ids == [event_id(0)]


async def test_410_to_an_event_in_line_ends_it_too(volume: Volume, open_channel: Open) -> None:
    network = Network(*[500] * 5, 410)
    channel = open_channel(opener=network)
    assert [await channel.completed(index, {}) for index in range(4)] == [False] * 4
    assert network.ids == [event_id(0)] * 6 + [event_id(1)]
    assert volume.waiting() == []


async def test_a_blocked_address_is_never_tried_and_said_once(
    volume: Volume, open_channel: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with Receiver() as receiver:
        channel = open_channel(receiver.url, opener=Opener())
        channel.progress(ProgressEvent(5, "generating", 0))
        for index in range(3):
            assert await channel.completed(index, {}) is False
        assert receiver.received == []
    assert volume.waiting() == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_retry_after_is_obeyed_within_the_budget(open_channel: Open) -> None:
    def busy(handler: Handler, received: Received, number: int) -> None:
        handler.answer(429, Retry_After="1") if number == 1 else handler.answer(200)

    with Receiver(busy) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        first, second = receiver.received
        assert second.at - first.at >= 1.0


def an_hour_from_now() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize("wish", [lambda: "3600", an_hour_from_now])
async def test_retry_after_beyond_the_budget_waits_in_the_outbox(
    volume: Volume, open_channel: Open, wish: Callable[[], str]
) -> None:
    network = Network(PostAnswer(503, {"Retry-After": wish()}), 200)
    channel = open_channel(opener=network)
    assert [await channel.completed(index, {}) for index in (0, 1)] == [False, False]
    assert await open_channel(opener=network).completed(0, {}) is False  # the job delivered again obeys it too
    await send_rest(Volume(volume.folder, now=lambda: time.time() + 3590.0), network)
    assert network.ids == [event_id(0)]
    assert volume.waiting() == [event_id(0), event_id(1)]
    await send_rest(Volume(volume.folder, now=lambda: time.time() + 3601.0), network)
    assert network.ids == [event_id(0), event_id(0), event_id(1)]


@pytest.mark.parametrize("wish", ["", "soon", "-5", "9" * 5000, "Mon, 99 Foo 2025 00:00:00 GMT", "1.5"])
async def test_a_retry_after_that_makes_no_sense_is_no_wish(open_channel: Open, wish: str) -> None:
    network = Network(PostAnswer(503, {"Retry-After": wish}), 200)
    assert await open_channel(opener=network).completed(0, {}) is True


def drip_head(handler: Handler, received: Received, number: int) -> None:
    handler.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.05)


@pytest.mark.parametrize("behaviour", [hang, drip_head])
async def test_an_answer_that_never_ends_is_cut_off(volume: Volume, open_channel: Open, behaviour: Behaviour) -> None:
    patience = Patience(waits_s=(0.0,), attempt_s=0.2, event_s=0.5, job_s=0.6, least_s=0.15)
    with Receiver(behaviour) as receiver:
        channel = open_channel(receiver.url, patience=patience)
        began = time.monotonic()
        assert not any([await channel.completed(index, {}) for index in range(3)])
        assert 0.4 <= time.monotonic() - began < 6.0
    assert volume.waiting() == [event_id(index) for index in range(3)]


async def test_a_broken_connection_is_tried_again(open_channel: Open) -> None:
    def breaks(handler: Handler, received: Received, number: int) -> None:
        handler.reset() if number <= 3 else handler.answer(200)

    with Receiver(breaks) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert receiver.ids == [event_id(0)] * 4


@pytest.mark.parametrize("way", ["all at once", "a byte at a time"])
async def test_the_body_of_an_answer_is_not_waited_for(open_channel: Open, way: str) -> None:
    def chatty(handler: Handler, received: Received, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10_000_000))
        handler.end_headers()
        if way == "all at once":
            handler.wfile.write(b"x" * 10_000_000)
        else:
            handler.drip(b"x" * 10_000_000, 0.2)

    with Receiver(chatty) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert len(receiver.received) == 1


async def test_progress_is_not_retried_and_delays_nobody(open_channel: Open) -> None:
    def deaf_to_progress(handler: Handler, received: Received, number: int) -> None:
        handler.hang() if received.event["type"] == "progress" else handler.answer(200)

    with Receiver(deaf_to_progress) as receiver:
        channel = open_channel(receiver.url, patience=replace(QUICK, progress_s=0.3))
        for percent in range(100):
            channel.progress(ProgressEvent(percent, "generating", 0))
        await arrived(receiver)
        assert await channel.completed(0, {}) is True
        assert [event["type"] for event in receiver.events] == ["progress", "completed"]


async def test_failed_progress_is_dropped(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(1)) as receiver:
        channel = open_channel(receiver.url)
        channel.progress(ProgressEvent(5, "generating", 0))
        await arrived(receiver)
        assert await channel.completed(0, {}) is True
        assert [event["type"] for event in receiver.events] == ["progress", "completed"]
    assert volume.waiting() == []
