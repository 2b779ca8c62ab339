"""A video through the spool, with real files, the real journal and the folder storage; the journal decides."""

from __future__ import annotations

import logging
import stat

import pytest

from tests.kits.delivery import make_video, result_of
from tests.kits.spool_kit import DAY, JOB, Place, Slow
from worker.base import files
from worker.base.errors import UploadFailed
from worker.delivery.storage import video_key
from worker.delivery.storage.base import Delivery, Files, with_links
from worker.media import VideoFile
from worker.request.payload import OutputFormat

PROMPT = "a heron stands in the reeds"


# --- a video through the spool


def test_what_is_kept_is_stored_later_with_its_own_result(place: Place) -> None:
    video = place.keep()
    assert [name[-6:] for name in place.files] == ["00.jpg", "00.mp4"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.folder.iterdir()} == {0o600}
    assert video.path.read_bytes() == b"video bytes"  # the job's own copy stays
    result = place.upload(place.found())
    assert place.stored() == b"video bytes"
    assert place.files == []
    entry = place.journal.entry(JOB)
    assert entry is not None
    assert (entry.finished, entry.unstored) == ({0: result}, {})
    expected = with_links(result_of(video), place.storage.links(video_key(JOB, 0, DAY), Files(".mp4", poster=True)))
    timings = result["timings"]
    assert result == {**expected, "timings": timings}
    assert list(result) == list(expected)
    assert timings["generate"] == 3.0
    assert timings["upload"] >= 1.5
    assert timings["total"] - timings["upload"] == pytest.approx(3.5)


def test_the_video_that_is_found_is_the_one_that_was_kept(place: Place) -> None:
    video = place.keep()
    found = place.found()
    assert (found.job_id, found.index) == (JOB, 0)
    paths = {"path": found.video.path, "poster": found.video.poster}
    assert found.video == VideoFile(**{**{name: getattr(video, name) for name in VideoFile.__slots__}, **paths})


def test_a_storage_that_is_still_down_leaves_the_video_for_another_worker(place: Place) -> None:
    place.storage_is_down()
    place.keep()
    before = place.files
    with pytest.raises(UploadFailed, match="OUTPUT_DIR is not a folder"):
        place.upload(place.found())
    place.spool.drain(place.storage)
    assert place.files == before
    place.storage_is_back()
    place.another_worker().drain(place.storage)
    assert place.stored() == b"video bytes"
    assert place.files == []
    assert place.finished()[0]["video_url"].endswith("/abc-123/0.mp4")


def test_a_dead_storage_is_asked_once_a_round(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    place.storage_is_down()
    for index in range(3):
        place.keep(bytes([index]), index)
    caplog.clear()
    place.spool.drain(place.storage)
    assert sum("writing" in record.getMessage() for record in caplog.records) == 1


def test_without_a_poster_there_is_no_thumbnail_and_a_lost_one_costs_no_more(place: Place) -> None:
    place.keep(b"one", 0, poster=None)
    place.keep(b"two", 1)
    assert len(place.files) == 3
    poster = place.found(1).video.poster
    assert poster is not None
    poster.unlink()
    for index in (0, 1):
        assert place.upload(place.found(index))["thumbnail_url"] is None
    assert place.files == []


def test_only_the_same_video_of_the_same_job_is_found(place: Place) -> None:
    place.keep(index=1)
    assert place.found(1).index == 1
    assert [place.spool.find(JOB, index) for index in (0, 10, 11)] == [None] * 3
    assert place.spool.find("ABC-123", 1) is None


def test_the_first_that_is_kept_of_a_video_stays(place: Place) -> None:
    place.keep(b"first")
    place.keep(b"second")
    assert place.found().video.path.read_bytes() == b"first"
    place.spool.drain(place.storage)
    assert place.stored() == b"first"


def test_neither_log_nor_repr_holds_the_prompt(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place.keep()
    assert place.found().result["prompt"] == PROMPT
    assert PROMPT not in repr(place.found())
    place.spool.drain(place.storage)
    assert PROMPT not in caplog.text


# --- the journal decides


def test_a_video_that_is_stored_already_is_not_stored_again(place: Place) -> None:
    video = place.keep()
    recorded = with_links(result_of(video), place.storage.store(video, video_key(JOB, 0, DAY)))
    found, slow = place.found(), Slow(place.storage)
    place.journal.record_result(JOB, 0, recorded)
    place.spool.keep(video, place.accept(), 0, result_of(video))  # as another worker, which made it too
    assert place.upload(found, slow) == recorded
    assert slow.stored == []
    assert place.files == []


def test_what_was_stored_and_recorded_by_a_worker_that_then_died_is_not_stored_again(place: Place) -> None:
    video = place.keep()
    place.journal.record_result(JOB, 0, with_links(result_of(video), Delivery("file:///x", None)))
    slow = Slow(place.storage)
    place.spool.drain(slow)
    assert slow.stored == []
    place.ahead_s = 3600 + 60
    place.spool.drain(slow)
    assert place.files == []


def test_a_recorded_video_that_is_gone_from_the_storage_gives_way_to_the_kept_one(place: Place) -> None:
    """It was stored and deleted, made again, and could not be stored: what is stored at last is what is recorded."""
    place.accept()
    old = make_video(place.root / "old", b"old bytes")
    place.journal.record_result(JOB, 0, {**result_of(old), "seed": 1})
    video = place.keep(b"new bytes")
    place.spool.drain(place.storage)
    assert place.stored() == b"new bytes"
    assert (place.finished()[0]["sha256"], place.finished()[0]["seed"]) == (video.sha256, 7)
    assert place.files == []


@pytest.mark.parametrize("why", ["no entry", "another payload"])
def test_a_video_is_kept_only_beside_the_entry_of_its_own_job(place: Place, why: str) -> None:
    """Its entry expired while it was made: nobody could ask for the video."""
    mine = place.accept()
    place.ahead_s = files.KEEP_S + 60
    if why == "another payload":
        place.accept(digest="e" * 64)
    video = make_video(place.root / "job")
    place.spool.keep(video, mine, 0, result_of(video))
    assert place.files == []
    assert place.spool.find(JOB, 0) is None


# --- what stands beside a video, and videos for an address of the caller's


@pytest.mark.parametrize("name", ["webm", "gif", "webp"])
def test_every_format_goes_through_the_spool_with_its_frames(place: Place, name: OutputFormat) -> None:
    video = place.keep(frames=b"a zip", output_format=name)
    assert [file.rpartition("-")[2] for file in place.files] == sorted(["00.jpg", f"00.{name}", "00.zip"])
    assert place.found().video.format == video.format
    result = place.upload(place.found())
    key = f"out/{video_key(JOB, 0, DAY)}"
    assert (place.root / f"{key}.{name}").read_bytes() == b"video bytes"
    assert (place.root / f"{key}.zip").read_bytes() == b"a zip"
    assert result["video_url"].endswith(f"/0.{name}")
    assert result["frames_url"].endswith("/0.zip")
    assert place.files == []


def test_a_kept_result_that_names_no_format_is_an_mp4(place: Place) -> None:
    video = make_video(place.root / "job")
    result = {name: value for name, value in result_of(video).items() if name != "parameters"}
    place.spool.keep(video, place.accept(), 0, result)
    place.spool.drain(place.storage)
    assert place.stored() == b"video bytes"


def test_a_video_for_an_address_of_the_callers_waits_for_its_job(place: Place) -> None:
    video = make_video(place.root / "job")
    place.spool.keep(video, place.accept(), 0, {**result_of(video), "video_url": "https://theirs.example/a.mp4"})
    place.spool.drain(place.storage)
    assert not (place.root / "out").exists()
    assert place.found().video.sha256 == video.sha256
