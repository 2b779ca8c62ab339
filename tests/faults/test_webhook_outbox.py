"""Receivers that are dead and workers that die: no final event is lost, none has a second id."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from tests.kits.webhook_receiver import Receiver, works
from tests.kits.webhooks import ALL, OPENER, Network, Open, Volume, arrived, dead_port, event_id, hang, hook, send_rest
from worker.delivery.webhooks.channel import Channel


async def test_nothing_is_lost_when_the_receiver_is_dead_for_the_whole_job(volume: Volume, open_channel: Open) -> None:
    port = dead_port()
    for job_id in ("job-a", "job-b"):
        channel = open_channel(hook(port), job_id=job_id)
        assert not any([await channel.completed(index, {"index": index}) for index in range(12)])
    expected = [event_id(index, job_id) for job_id in ("job-a", "job-b") for index in range(12)]
    assert sorted(volume.waiting()) == sorted(expected)
    with Receiver(port=port) as receiver:
        await send_rest(Volume(volume.folder))
        assert sorted(receiver.ids) == sorted(expected)
        for job_id in ("job-a", "job-b"):
            own = [event_id(index, job_id) for index in range(12)]
            assert [event for event in receiver.ids if event in own] == own
        await send_rest(volume)
        assert len(receiver.received) == 24
    assert volume.waiting() == []


async def test_an_unusable_state_folder_costs_only_the_outbox(
    tmp_path: Path, open_channel: Open, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    broken = Volume(tmp_path / "file")
    network = Network(*[500] * 4, 200)
    channel = open_channel(opener=network, outbox=broken.outbox, journal=broken.journal)
    assert [await channel.completed(index, {}) for index in range(2)] == [True, True]
    assert network.ids == [event_id(0)] * 5 + [event_id(1)]
    assert len([record for record in caplog.records if "STATE_DIR" in record.getMessage()]) == 1
    channel = open_channel(opener=Network(500), outbox=broken.outbox, journal=broken.journal)
    assert [await channel.completed(index, {}) for index in range(2)] == [False, False]
    assert caplog.text.count("lost") == 2 + 1  # each event, and the line on STATE_DIR


@pytest.mark.parametrize("what", ["damaged", "expired"])
async def test_a_letter_that_cannot_be_sent_does_not_take_its_event_along(
    volume: Volume, open_channel: Open, what: str
) -> None:
    await open_channel(opener=Network(500)).completed(0, {"run": 1})
    (place,) = (volume.folder / "outbox").glob("*.json")
    text = place.read_text()
    place.write_text(text[:40] if what == "damaged" else text.replace('"created_at":1', '"created_at":'))
    network = Network(200)
    assert await open_channel(opener=network).completed(0, {"run": 2}) is True
    assert network.ids == [event_id(0)]
    assert volume.waiting() == []


async def test_a_job_delivered_again_sends_what_its_first_worker_left(volume: Volume, open_channel: Open) -> None:
    network = Network(500)
    first = open_channel(opener=network)
    for index in range(3):
        await first.completed(index, {"run": 1})
    back = Network(200)
    second = open_channel(opener=back)
    assert [await second.completed(index, {"run": 2}) for index in range(4)] == [True] * 4
    assert back.ids == [event_id(index) for index in range(4)]
    assert volume.waiting() == []


async def test_a_dead_receiver_of_the_same_job_id_holds_up_nobody_else(volume: Volume, open_channel: Open) -> None:
    """A payload that was refused is sent again, mended, with another webhook_url."""
    await open_channel(hook(dead_port()), payload_digest="d0").failed(None, {}, 400, "no")
    with Receiver() as receiver:
        assert await open_channel(receiver.url).completed(0, {}) is True
        assert receiver.ids == [event_id(0)]
    assert len(volume.waiting()) == 1


def _send_and_hang(folder: Path, url: str) -> None:
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


async def test_a_worker_killed_while_it_sends_leaves_the_event_to_the_next(volume: Volume) -> None:
    with Receiver(hang) as receiver:
        process = multiprocessing.get_context("fork").Process(target=_send_and_hang, args=(volume.folder, receiver.url))
        process.start()
        await arrived(receiver)
        receiver.behaviour = works
        await send_rest(volume)  # while its sender lives, nobody else sends it
        assert len(receiver.received) == 1
        process.kill()
        process.join()
        process.close()
        await send_rest(volume)
        assert receiver.ids == [event_id(0)] * 2
        assert volume.journal.has_arrived("abc", event_id(0))
