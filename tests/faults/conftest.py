"""The fixtures of whole jobs, for faults in the middle of one, and of a channel of webhooks alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest

from tests.flow.conftest import bucket, engine, make_runner, picture_url, platform, receiver, run
from tests.kits.scene import make_scene, scene
from tests.kits.webhooks import ALL, OPENER, QUICK, Open, Volume
from worker.delivery.webhooks.channel import Channel

__all__ = ["bucket", "engine", "make_runner", "make_scene", "picture_url", "platform", "receiver", "run", "scene"]


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    volume = Volume(tmp_path / "state")
    volume.journal.accept("abc", "d1", today=date(2025, 3, 1), seeds=[1])
    return volume


@pytest.fixture
async def open_channel(volume: Volume) -> AsyncIterator[Open]:
    channels: list[Channel] = []

    def make(url: str = "https://one.example/hook", **options: object) -> Channel:
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
        channels.append(Channel(url=url, **arguments))  # type: ignore[arg-type]
        return channels[-1]

    yield make
    for channel in channels:
        await channel.close()
