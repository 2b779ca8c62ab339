"""Receivers that fail, and workers that die: no final event is lost, none has a second id, no job is held up."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.kits.webhook_receiver import Behaviour, Handler, Received, Receiver, works
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.envelopes import final_event_id
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import PATIENCE, Patience, redeliver
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.net import Opener

ALL = frozenset({"progress", "completed", "failed"})
QUICK = Patience(waits_s=(0.01,) * 4, attempt_s=5.0, event_s=10.0, job_s=20.0, least_s=0.0, progress_every_s=0.0)
OPENER = Opener(("127.0.0.1",))
Open = Callable[..., Channel]


class Volume:
    """A worker's view of a shared STATE_DIR."""

    def __init__(self, folder: Path, *, ahead_s: float = 0.0) -> None:
        self.folder = folder
        state = StateFolder(folder)
        self.journal = Journal(state)
        self.outbox = Outbox(state, now=lambda: time.time() + ahead_s)

    def waiting(self) -> list[str]:
        """The ids of the events in the outbox, in order."""
        paths = sorted((self.folder / "outbox").glob("*.json"))
        return [json.loads(path.read_text())["event_id"] for path in paths]

    async def redeliver(self) -> int:
        return await redeliver(self.outbox, opener=OPENER, secrets=(), journal=self.journal, patience=QUICK)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "state")
    volume.journal.accept("abc", "d1", today=date(2025, 3, 1), seeds=[1])
    return volume


@pytest.fixture
async def open_channel(volume: Volume) -> AsyncIterator[Open]:
    channels: list[Channel] = []

    def make(url: str, **options: object) -> Channel:
        arguments: dict[str, object] = {
            "events": ALL,
            "job_id": "abc",
            "total": 50,
            "payload_digest": "d1",
            "opener": OPENER,
            "secrets": (),
            "outbox": volume.outbox,
            "journal": volume.journal,
            "patience": QUICK,
            **options,
        }
        channels.append(Channel(url=url, **arguments))
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()


async def first_request(receiver: Receiver) -> None:
    """A final event overtakes progress that has not been sent: wait until it has."""
    deadline = time.monotonic() + 20
    while not receiver.received and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


def event_id(index: int, job_id: str = "abc") -> str:
    return final_event_id(job_id, "d1", index, "completed")


def failing(times: int, status: int = 500) -> Behaviour:
    def behave(handler: Handler, received: Received, number: int) -> None:
        handler.answer(status if number <= times else 200)

    return behave


def dead_address() -> str:
    with Receiver() as receiver:
        return receiver.url


async def test_four_failures_and_then_success_is_one_event(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(4)) as receiver:
        assert await open_channel(receiver.url).completed(0, {"n": 1}) is True
        assert receiver.ids == [event_id(0)] * 5
        assert len({received.body for received in receiver.received}) == 1
    assert volume.waiting() == []
    assert volume.journal.is_told("abc", event_id(0))


async def test_five_failures_use_the_attempts_up_and_keep_the_event(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(5)) as receiver:
        assert await open_channel(receiver.url).completed(0, {"n": 1}) is False
        assert len(receiver.received) == 5
        assert volume.waiting() == [event_id(0)]
        assert not volume.journal.is_told("abc", event_id(0))
        assert await volume.redeliver() == 1
        assert receiver.ids == [event_id(0)] * 6
    assert volume.waiting() == []
    assert volume.journal.is_told("abc", event_id(0))


async def test_the_waits_double_within_the_35_seconds_of_the_contract() -> None:
    assert PATIENCE.waits_s == (1.0, 2.0, 4.0, 8.0)
    assert (PATIENCE.attempt_s, PATIENCE.event_s) == (15.0, 35.0)


async def test_later_events_of_a_dead_job_are_tried_once_and_in_order(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(7)) as receiver:
        channel = open_channel(receiver.url)
        told = [await channel.completed(index, {}) for index in range(5)]
        # Five attempts for the first, one knock with the head of the line for the second and the third.
        assert told == [False, False, False, True, True]
        assert receiver.ids == [event_id(0)] * 8 + [event_id(index) for index in (1, 2, 3, 4)]
    assert volume.waiting() == []
    assert all(volume.journal.is_told("abc", event_id(index)) for index in range(5))


async def test_nothing_is_lost_when_the_receiver_is_dead_for_the_whole_job(volume: Volume, open_channel: Open) -> None:
    url = dead_address()
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    for job_id in ("job-a", "job-b"):
        channel = open_channel(url, job_id=job_id)
        assert not any([await channel.completed(index, {"index": index}) for index in range(25)])
    expected = [event_id(index, job_id) for job_id in ("job-a", "job-b") for index in range(25)]
    assert sorted(volume.waiting()) == sorted(expected)
    with Receiver(port=port) as receiver:
        assert await Volume(volume.folder).redeliver() == 50
        assert sorted(receiver.ids) == sorted(expected)
        for job_id in ("job-a", "job-b"):
            own = [event for event in receiver.ids if event in {event_id(index, job_id) for index in range(25)}]
            assert own == [event_id(index, job_id) for index in range(25)]
        assert await volume.redeliver() == 0
        assert len(receiver.received) == 50
    assert volume.waiting() == []


async def test_the_next_job_in_the_same_process_sends_what_the_last_could_not(
    volume: Volume, open_channel: Open
) -> None:
    url = dead_address()
    channel = open_channel(url)
    for index in range(20):
        await channel.completed(index, {})
    with Receiver(port=int(url.rsplit(":", 1)[1].split("/")[0])) as receiver:
        assert await volume.redeliver() == 20
        assert receiver.ids == [event_id(index) for index in range(20)]


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


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_every_2xx_is_success(open_channel: Open, status: int) -> None:
    with Receiver(failing(9, status)) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert len(receiver.received) == 1


@pytest.mark.parametrize("status", [400, 401, 404, 408, 429, 500, 503])
async def test_every_other_answer_is_tried_again(open_channel: Open, status: int) -> None:
    with Receiver(failing(1, status)) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert len(receiver.received) == 2


async def test_410_ends_it_for_good(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(99, 410)) as receiver:
        channel = open_channel(receiver.url)
        assert await channel.completed(0, {}) is False
        assert await channel.completed(1, {}) is False
        channel.progress(ProgressEvent(5, "generating", 2))
        await channel.close()
        assert len(receiver.received) == 1
        assert volume.waiting() == []
        assert await volume.redeliver() == 0
        # A redelivered job does not send it again either.
        await open_channel(receiver.url).completed(0, {})
        assert len(receiver.received) == 1


async def test_410_to_an_event_in_line_ends_it_too(volume: Volume, open_channel: Open) -> None:
    def fails_then_gone(handler: Handler, received: Received, number: int) -> None:
        handler.answer(500 if number <= 5 else 410)

    with Receiver(fails_then_gone) as receiver:
        channel = open_channel(receiver.url)
        assert [await channel.completed(index, {}) for index in range(4)] == [False] * 4
        assert receiver.ids == [event_id(0)] * 6 + [event_id(1)]
    assert volume.waiting() == []


async def test_retry_after_is_obeyed_within_the_budget(open_channel: Open) -> None:
    def busy(handler: Handler, received: Received, number: int) -> None:
        if number == 1:
            handler.answer(429, Retry_After="1")
        else:
            handler.answer(200)

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
    def busy(handler: Handler, received: Received, number: int) -> None:
        if number == 1:
            handler.answer(503, Retry_After=wish())
        else:
            handler.answer(200)

    with Receiver(busy) as receiver:
        channel = open_channel(receiver.url)
        assert await channel.completed(0, {}) is False
        assert await channel.completed(1, {}) is False
        assert await open_channel(receiver.url).completed(0, {}) is False  # the job delivered again obeys it too
        assert await Volume(volume.folder, ahead_s=3590.0).redeliver() == 0
        assert len(receiver.received) == 1
        assert volume.waiting() == [event_id(0), event_id(1)]
        assert await Volume(volume.folder, ahead_s=3601.0).redeliver() == 2
        assert receiver.ids == [event_id(0), event_id(0), event_id(1)]


@pytest.mark.parametrize("wish", ["", "soon", "-5", "9" * 5000, "Mon, 99 Foo 2025 00:00:00 GMT", "1.5"])
async def test_a_retry_after_that_makes_no_sense_is_no_wish(open_channel: Open, wish: str) -> None:
    def busy(handler: Handler, received: Received, number: int) -> None:
        handler.answer(200) if number > 1 else handler.answer(503, Retry_After=wish)

    with Receiver(busy) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True


def hang(handler: Handler, received: Received, number: int) -> None:
    handler.hang()


def drip_head(handler: Handler, received: Received, number: int) -> None:
    handler.drip(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 0.2)


async def _bounded(open_channel: Open, behaviour: Behaviour) -> tuple[list[bool], list[float], int]:
    """Five events to a receiver that never finishes its answer: what was told, and how long each took."""
    rules = Patience(
        waits_s=(0.05,) * 4, attempt_s=0.3, event_s=1.0, job_s=1.6, least_s=0.05, progress_s=0.3, close_s=1.0
    )
    told, seconds = [], []
    with Receiver(behaviour) as receiver:
        channel = open_channel(receiver.url, patience=rules)
        for index in range(5):
            began = time.monotonic()
            told.append(await channel.completed(index, {}))
            seconds.append(time.monotonic() - began)
        return told, seconds, len(receiver.received)


@pytest.mark.parametrize("behaviour", [hang, drip_head])
async def test_a_receiver_that_never_finishes_costs_a_job_its_budget_and_no_more(
    volume: Volume, open_channel: Open, behaviour: Behaviour
) -> None:
    told, seconds, attempts = await _bounded(open_channel, behaviour)
    assert told == [False] * 5
    assert 0.8 <= seconds[0] < 8.0
    assert sum(seconds) < 15.0
    assert 1 <= attempts <= 7  # of the first event at most 4, then until the job's budget is spent
    assert volume.waiting() == [event_id(index) for index in range(5)]


async def test_a_broken_connection_is_tried_again(open_channel: Open) -> None:
    def breaks(handler: Handler, received: Received, number: int) -> None:
        if number <= 3:
            handler.reset()
        else:
            handler.answer(200)

    with Receiver(breaks) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert receiver.ids == [event_id(0)] * 4


async def test_the_answer_s_body_is_not_waited_for(open_channel: Open) -> None:
    def chatty(handler: Handler, received: Received, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10_000_000))
        handler.end_headers()
        handler.drip(b"x" * 10_000_000, 0.2)

    with Receiver(chatty) as receiver:
        began = time.monotonic()
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert time.monotonic() - began < QUICK.attempt_s
        assert len(receiver.received) == 1


async def test_a_10_mb_answer_does_no_harm(open_channel: Open) -> None:
    def large(handler: Handler, received: Received, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10_000_000))
        handler.end_headers()
        handler.wfile.write(b"x" * 10_000_000)

    with Receiver(large) as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True


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


async def test_an_unusable_state_folder_costs_only_the_outbox(
    tmp_path: Path, open_channel: Open, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    broken = Volume(tmp_path / "file")
    with Receiver(failing(4)) as receiver:
        channel = open_channel(receiver.url, outbox=broken.outbox, journal=broken.journal)
        assert [await channel.completed(index, {}) for index in range(2)] == [True, True]
        assert receiver.ids == [event_id(0)] * 5 + [event_id(1)]
        assert len([record for record in caplog.records if "STATE_DIR" in record.getMessage()]) == 1
    channel = open_channel(dead_address(), outbox=broken.outbox, journal=broken.journal)
    assert [await channel.completed(index, {}) for index in range(2)] == [False, False]
    assert caplog.text.count("lost") == 2 + 1  # each event, and the line on STATE_DIR


async def test_progress_is_not_retried_and_delays_nobody(open_channel: Open) -> None:
    rules = Patience(waits_s=(0.01,) * 4, least_s=0.0, progress_s=0.5, progress_every_s=0.0)

    def deaf_to_progress(handler: Handler, received: Received, number: int) -> None:
        handler.hang() if received.event["type"] == "progress" else handler.answer(200)

    with Receiver(deaf_to_progress) as receiver:
        channel = open_channel(receiver.url, patience=rules)
        began = time.monotonic()
        for percent in range(100):
            channel.progress(ProgressEvent(percent, "generating", 0))
        assert time.monotonic() - began < 0.4
        await first_request(receiver)
        assert await channel.completed(0, {}) is True
        assert [event["type"] for event in receiver.events].count("progress") == 1
        assert receiver.events[-1]["type"] == "completed"


async def test_failed_progress_is_dropped(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(1)) as receiver:
        channel = open_channel(receiver.url)
        channel.progress(ProgressEvent(5, "generating", 0))
        await first_request(receiver)
        assert await channel.completed(0, {}) is True
        assert [event["type"] for event in receiver.events] == ["progress", "completed"]
    assert volume.waiting() == []


async def test_a_channel_that_is_closed_early_keeps_its_events(volume: Volume, open_channel: Open) -> None:
    with Receiver(hang) as receiver:
        channel = open_channel(receiver.url)
        telling = [asyncio.create_task(channel.completed(index, {})) for index in range(3)]
        await first_request(receiver)
        began = time.monotonic()
        await channel.close()
        assert time.monotonic() - began < QUICK.attempt_s
        assert await asyncio.gather(*telling) == [False] * 3
    assert volume.waiting() == [event_id(index) for index in range(3)]


async def test_a_cancelled_round_ends_soon_and_loses_nothing(volume: Volume, open_channel: Open) -> None:
    url = dead_address()
    await open_channel(url).completed(0, {})
    with Receiver(hang, port=int(url.rsplit(":", 1)[1].split("/")[0])) as receiver:
        running = asyncio.create_task(volume.redeliver())
        await first_request(receiver)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        receiver.behaviour = works
        other, deadline = Volume(volume.folder), time.monotonic() + 10
        while await other.redeliver() == 0:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert volume.waiting() == []


def _tell_and_hang(folder: Path, url: str) -> None:
    async def main() -> None:
        own = Volume(folder)
        channel = Channel(
            url=url,
            events=ALL,
            job_id="abc",
            total=2,
            payload_digest="d1",
            opener=OPENER,
            secrets=(),
            outbox=own.outbox,
            journal=own.journal,
        )
        await asyncio.gather(channel.completed(0, {"n": 0}), channel.completed(1, {"n": 1}))

    asyncio.run(main())


async def test_a_worker_killed_while_it_tells_leaves_the_event_to_the_next(volume: Volume) -> None:
    with Receiver(hang) as receiver:
        process = multiprocessing.get_context("fork").Process(target=_tell_and_hang, args=(volume.folder, receiver.url))
        process.start()
        await first_request(receiver)
        receiver.behaviour = works
        # While its sender lives, nobody else sends it.
        assert await volume.redeliver() == 0
        process.kill()
        process.join()
        process.close()
        assert await volume.redeliver() == 1
        assert receiver.ids == [event_id(0)] * 2
        assert volume.journal.is_told("abc", event_id(0))


async def test_a_job_delivered_again_takes_over_what_its_first_worker_left(volume: Volume, open_channel: Open) -> None:
    url = dead_address()
    first = open_channel(url)
    for index in range(3):
        await first.completed(index, {"run": 1})
    with Receiver(port=int(url.rsplit(":", 1)[1].split("/")[0])) as receiver:
        second = open_channel(url)
        assert [await second.completed(index, {"run": 2}) for index in range(4)] == [True] * 4
        assert receiver.ids == [event_id(index) for index in range(4)]
    assert volume.waiting() == []


async def test_two_workers_that_empty_the_outbox_at_once_send_each_event_once(
    volume: Volume, open_channel: Open
) -> None:
    url = dead_address()
    for job in range(6):
        channel = open_channel(url, job_id=f"job-{job}")
        for index in range(4):
            await channel.completed(index, {})
    gate = threading.Barrier(2, timeout=20)

    def drains() -> None:
        gate.wait()
        asyncio.run(Volume(volume.folder).redeliver())

    with Receiver(port=int(url.rsplit(":", 1)[1].split("/")[0])) as receiver:
        await asyncio.gather(*(asyncio.to_thread(drains) for _ in range(2)))
        await volume.redeliver()  # a line that was busy is left to the next round
        assert sorted(receiver.ids) == sorted(event_id(index, f"job-{job}") for job in range(6) for index in range(4))
    assert volume.waiting() == []


# --- a worker that must end

PATIENT = Patience(waits_s=(0.5,) * 4, attempt_s=60.0, event_s=120.0, job_s=200.0, last_s=5.0, progress_every_s=0.0)


async def test_a_hurry_ends_the_attempt_under_way_and_keeps_its_event(volume: Volume, open_channel: Open) -> None:
    let_go = threading.Event()

    def silent(handler: Handler, received: Received, number: int) -> None:
        let_go.wait(60)

    with Receiver(silent) as receiver:
        channel = open_channel(receiver.url, patience=PATIENT)
        telling = asyncio.create_task(channel.completed(0, {"n": 1}))
        await first_request(receiver)
        channel.hurry()
        assert await asyncio.wait_for(telling, 20) is False  # the attempt alone had 60 s
        assert await asyncio.wait_for(channel.completed(1, {"n": 2}), 20) is False  # no other after a failure
        assert len(receiver.received) == 1
        let_go.set()
    assert volume.waiting() == [event_id(0), event_id(1)]


async def test_a_hurry_ends_the_wait_before_the_next_attempt(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(50)) as receiver:
        channel = open_channel(receiver.url, patience=replace(PATIENT, waits_s=(60.0,) * 4))
        telling = asyncio.create_task(channel.completed(0, {"n": 1}))
        await first_request(receiver)
        channel.hurry()
        assert await asyncio.wait_for(telling, 20) is False
        assert len(receiver.received) == 1
    assert volume.waiting() == [event_id(0)]


async def test_after_a_hurry_a_receiver_that_works_is_told(volume: Volume, open_channel: Open) -> None:
    with Receiver(works) as receiver:
        channel = open_channel(receiver.url, patience=PATIENT)
        channel.hurry()
        assert [await channel.completed(index, {"n": index}) for index in range(3)] == [True] * 3
        assert receiver.ids == [event_id(index) for index in range(3)]
    assert volume.waiting() == []


async def test_after_a_hurry_each_event_has_one_attempt(volume: Volume, open_channel: Open) -> None:
    with Receiver(failing(1)) as receiver:
        channel = open_channel(receiver.url, patience=PATIENT)
        channel.hurry()
        assert await channel.completed(0, {"n": 0}) is False
        assert len(receiver.received) == 1
    assert volume.waiting() == [event_id(0)]


async def test_a_channel_that_was_hurried_closes_as_ever(open_channel: Open) -> None:
    with Receiver(works) as receiver:
        channel = open_channel(receiver.url)
        channel.hurry()
        await channel.close()
        assert await channel.completed(0, {}) is False
        assert receiver.received == []
