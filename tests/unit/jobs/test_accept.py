"""A payload becomes a job whose seeds are those of the journal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker.base.files import StateFolder
from worker.base.settings import Settings
from worker.delivery.journal import Journal
from worker.jobs import accept
from worker.net import Opener


async def test_a_job_delivered_again_has_the_seeds_that_were_drawn_first(tmp_path: Path) -> None:
    """Its videos would differ from those that the caller was already sent."""
    parts: Any = SimpleNamespace(settings=Settings(), opener=Opener(""), journal=Journal(StateFolder(tmp_path)))
    payload = {
        "job_request_params": [
            {"prompt": "a cat"},
            {"prompt": "a dog", "seed": 0},
            {"prompt": "a bird", "seed": 2**63 - 1},
        ]
    }
    first, entry = await accept.accept(payload, "j", "d" * 64, parts)
    again, _ = await accept.accept(payload, "j", "d" * 64, parts)
    other, _ = await accept.accept(payload, "k", "d" * 64, parts)
    seeds = [video.seed for video in first.videos]
    assert [video.seed for video in again.videos] == seeds == list(entry.seeds)
    assert seeds[1:] == [0, 2**63 - 1]
    assert [video.seed for video in other.videos] != seeds
    assert again == first
