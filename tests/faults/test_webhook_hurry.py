"""A worker that must end: what it sends ends soon, and its events wait in the outbox."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.kits.webhook_receiver import Receiver, works
from tests.kits.webhooks import Network, Open, Volume, arrived, dead_port, event_id, failing, hang, hook, send_rest
from worker.delivery.webhooks.postman import Patience

PATIENT = Patience(waits_s=(60.0,) * 4, attempt_s=60.0, event_s=120.0, job_s=200.0, last_s=5.0, progress_every_s=0.0)


async def test_a_channel_that_is_closed_early_keeps_its_events(volume: Volume, open_channel: Open) -> None:
    with Receiver(hang) as receiver:
        channel = open_channel(receiver.url, patience=PATIENT)
        sending = [asyncio.create_task(channel.completed(index, {})) for index in range(3)]
        await arrived(receiver)
        await channel.close()
        assert await asyncio.wait_for(asyncio.gather(*sending), 20) == [False] * 3
    assert volume.waiting() == [event_id(index) for index in range(3)]


async def test_a_cancelled_round_ends_soon_and_loses_nothing(volume: Volume, open_channel: Open) -> None:
    port = dead_port()
    await open_channel(hook(port)).completed(0, {})
    with Receiver(hang, port=port) as receiver:
        running = asyncio.create_task(send_rest(volume))
        await arrived(receiver)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        receiver.behaviour = works
        other, deadline = Volume(volume.folder), time.monotonic() + 10
        while volume.waiting():  # until the cancelled round has let go of it
            assert time.monotonic() < deadline
            await send_rest(other)
        assert receiver.ids == [event_id(0)] * 2


@pytest.mark.parametrize("moment", ["in an attempt", "between two attempts"])
async def test_a_hurry_ends_what_is_under_way_and_keeps_its_event(
    volume: Volume, open_channel: Open, moment: str
) -> None:
    with Receiver(hang if moment == "in an attempt" else failing(50)) as receiver:
        channel = open_channel(receiver.url, patience=PATIENT)
        sending = asyncio.create_task(channel.completed(0, {"n": 1}))
        await arrived(receiver)
        channel.hurry()
        assert await asyncio.wait_for(sending, 20) is False  # the attempt, or the wait, alone had 60 s
        assert await asyncio.wait_for(channel.completed(1, {"n": 2}), 20) is False  # no other after a failure
        assert len(receiver.received) == 1
    assert volume.waiting() == [event_id(0), event_id(1)]


async def test_after_a_hurry_a_receiver_that_works_gets_every_event(volume: Volume, open_channel: Open) -> None:
    network = Network(200)
    channel = open_channel(opener=network, patience=PATIENT)
    channel.hurry()
    assert [await channel.completed(index, {"n": index}) for index in range(3)] == [True] * 3
    assert network.ids == [event_id(index) for index in range(3)]
    assert all(timeout_s <= PATIENT.last_s for timeout_s in network.timeouts)
    assert volume.waiting() == []


async def test_after_a_hurry_each_event_has_one_attempt(volume: Volume, open_channel: Open) -> None:
    network = Network(500, 200)
    channel = open_channel(opener=network, patience=PATIENT)
    channel.hurry()
    assert await channel.completed(0, {"n": 0}) is False
    assert len(network.ids) == 1
    assert volume.waiting() == [event_id(0)]


async def test_a_channel_that_was_hurried_closes_as_ever(open_channel: Open) -> None:
    network = Network(200)
    channel = open_channel(opener=network)
    channel.hurry()
    await channel.close()
    assert await channel.completed(0, {}) is False
    assert network.ids == []
