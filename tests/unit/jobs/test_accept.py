"""A payload becomes a job whose seeds are those of the journal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.base.errors import InputBlocked
from worker.base.files import StateFolder
from worker.base.settings import Settings
from worker.delivery.journal import Journal
from worker.jobs import accept
from worker.net import Opener
from worker.request import CATALOGUE
from worker.request.catalogue import DEMO_CATALOGUE


def services(folder: Path, **engine: Any) -> Any:
    return SimpleNamespace(
        settings=Settings(),
        opener=Opener(),
        journal=Journal(StateFolder(folder)),
        engine=SimpleNamespace(**{"catalogue": CATALOGUE, **engine}),
    )


async def test_a_job_delivered_again_has_the_seeds_that_were_drawn_first(tmp_path: Path) -> None:
    """Its videos would differ from those that the caller was already sent."""
    parts: Any = services(tmp_path)
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


async def test_what_is_not_given_is_from_the_models_that_are_served(tmp_path: Path) -> None:
    for catalogue, size in ((CATALOGUE, (832, 480)), (DEMO_CATALOGUE, (256, 256))):
        served = services(tmp_path, catalogue=catalogue)
        job, _ = await accept.accept({"prompt": "a cat"}, f"j{size[0]}", "d" * 64, served)
        assert (job.videos[0].width, job.videos[0].height) == size


async def test_every_url_is_judged_before_the_job_starts(tmp_path: Path) -> None:
    urls = {"webhook_url": "http://10.0.0.1/", "reference_image_url": "http://[::1]/", "upload_url": "ftp://a.test/"}
    with pytest.raises(InputBlocked) as caught:
        await accept.accept({"prompt": "a cat", **urls}, "j", "d" * 64, services(tmp_path))
    assert [problem.path for problem in caught.value.problems] == list(urls)
