"""The room of the spool: which videos go where there are too many, too large or too old ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kits.spool_kit import JOB, Place, Slow
from worker.base import files
from worker.delivery.spool import BOUNDS, Bounds

TIGHT = Bounds(size_bytes=10_000, videos=2)


def test_the_bounds() -> None:
    assert Bounds(5 * 1024**3, 200) == BOUNDS


def test_the_oldest_goes_when_there_are_too_many(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    spool = place.another_worker(Bounds(size_bytes=10_000_000, videos=3))
    for index in (2, 0, 1):
        place.keep(index=index, spool=spool)
    assert place.kept() == [0, 1, 2]
    assert "goes" not in caplog.text
    place.keep(index=3, spool=spool)
    assert place.kept() == [0, 1, 3]
    assert len(place.files) == 6
    assert "newer ones need its room" in caplog.text


def test_the_oldest_goes_when_the_room_is_used_up(place: Place) -> None:
    for index in (0, 1):
        place.keep(b"a" * 10_000, index)
    exactly = place.another_worker(Bounds(size_bytes=place.used_bytes() + 10_000, videos=200))
    place.keep(b"c" * 10_000, 2, spool=exactly, poster=None)
    assert place.kept() == [0, 1, 2]
    a_byte_less = place.another_worker(Bounds(size_bytes=place.used_bytes() + 10_000 - 1, videos=200))
    place.keep(b"d" * 10_000, 3, spool=a_byte_less, poster=None)
    assert place.kept() == [1, 2, 3]
    place.keep(b"e" * 25_000, 4, spool=place.another_worker(Bounds(26_000, 200)), poster=None)
    assert place.kept() == [4]


def test_a_video_larger_than_all_the_room_is_not_kept(place: Place) -> None:
    place.keep(b"a", 0)
    spool = place.another_worker(TIGHT)
    place.keep(b"b" * 10_001, 1, spool=spool, poster=None)
    assert place.kept() == [0]
    place.keep(b"b" * 10_000, 1, spool=spool, poster=None)
    assert place.kept() == [1]


def test_the_video_that_a_worker_is_storing_never_goes(place: Place, background: ThreadPoolExecutor) -> None:
    place.keep(b"oldest")
    slow = Slow(place.storage)
    draining = background.submit(place.spool.drain, slow)
    assert slow.begun.wait(20)
    for index in (1, 2):
        place.keep(bytes([index]), index, spool=place.another_worker(TIGHT))
    assert place.kept() == [0, 2]
    slow.go_on.set()
    draining.result(30)
    assert place.stored() == b"oldest"


def test_a_video_is_kept_for_the_7_days_of_its_job_and_no_longer(place: Place) -> None:
    place.storage_is_down()
    place.keep()
    place.ahead_s = files.KEEP_S - 60
    place.spool.drain(place.storage)
    assert place.found()
    place.ahead_s = files.KEEP_S + 60
    assert place.spool.find(JOB, 0) is None
    place.spool.drain(place.storage)
    assert place.files == []


def test_what_is_held_is_counted(place: Place) -> None:
    place.accept()
    assert place.spool.held() == (0, 0)
    for index in range(2):
        place.keep(b"v" * (1000 + index), index)
    assert place.spool.held() == (2, place.used_bytes())
    place.spool.drain(place.storage)
    assert place.spool.held() == (0, 0)
