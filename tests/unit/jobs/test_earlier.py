from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import make_video, result_of
from worker.base.errors import UploadFailed
from worker.base.files import StateFolder
from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import Found, Spool
from worker.delivery.storage import video_key
from worker.delivery.storage.base import Delivery, Files, with_links
from worker.delivery.storage.local import LocalStorage
from worker.jobs import accept

DAY = datetime.date(2026, 11, 21)
JOB, DIGEST = "abc-123", "d" * 64
KEY = video_key(JOB, 0, DAY)
RECORDED = Delivery("https://expired.example/0.mp4?X-Amz-Expires=1", "https://expired.example/0.jpg")


class Scene:
    """One job, one video of it, and what is left of it."""

    def __init__(self, root: Path) -> None:
        state = StateFolder(root / "state")
        self.journal = Journal(state)
        self.spool = Spool(state, self.journal)
        self.storage = LocalStorage(root / "out")
        self.entry: Entry = self.journal.accept(JOB, DIGEST, today=DAY, seeds=[1])
        self.video = make_video(root / "job", poster=None)
        self.result: Mapping[str, Any] = result_of(self.video)

    def record(self) -> None:
        self.journal.record_result(JOB, 0, with_links(self.result, RECORDED))

    def keep(self) -> None:
        self.spool.keep(self.video, self.entry, 0, self.result)

    def find(self) -> accept.Earlier | None:
        return accept.find_earlier(0, entry=self.entry, journal=self.journal, spool=self.spool, storage=self.storage)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_nothing_is_left_of_a_new_job(scene: Scene) -> None:
    assert scene.find() is None


def test_a_stored_video_is_its_result_with_urls_made_anew(scene: Scene) -> None:
    scene.storage.store(scene.video, KEY)
    scene.record()
    assert scene.find() == with_links(scene.result, scene.storage.links(KEY, Files(".mp4", poster=True)))


def test_a_video_that_is_gone_from_the_storage_is_made_again(scene: Scene) -> None:
    scene.record()
    assert scene.find() is None


def test_a_video_that_is_gone_but_kept_is_stored_again(scene: Scene) -> None:
    scene.record()
    scene.keep()
    assert isinstance(scene.find(), Found)


def test_a_kept_video_is_found(scene: Scene) -> None:
    scene.keep()
    left = scene.find()
    assert isinstance(left, Found)
    assert left.video.sha256 == scene.video.sha256


def test_a_storage_that_cannot_be_asked_counts_as_holding_it(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "out" / f"{KEY}.mp4").mkdir(parents=True)
    with pytest.raises(UploadFailed):
        scene.storage.holds(f"{KEY}.mp4", sha256="0" * 64)
    scene.record()
    assert scene.find() == with_links(scene.result, scene.storage.links(KEY, Files(".mp4", poster=True)))


def test_what_a_worker_stored_since_the_job_was_accepted_counts(scene: Scene) -> None:
    scene.keep()
    scene.spool.drain(scene.storage)
    assert scene.entry.finished == {}
    left = scene.find()
    assert isinstance(left, dict)
    assert left["sha256"] == scene.video.sha256


def test_what_a_worker_stores_while_the_job_looks_counts(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.keep()
    find = scene.spool.find

    def late(*video: Any) -> Found | None:
        scene.spool.drain(scene.storage)
        return find(*video)

    monkeypatch.setattr(scene.spool, "find", late)
    left = scene.find()
    assert isinstance(left, dict)
    assert left["sha256"] == scene.video.sha256
