"""The spool with real files, the real journal and the folder storage, which a file in its way takes out of order."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import multiprocessing
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import make_video, no_file_above, result_of
from worker.base import files, locks
from worker.base.errors import UploadFailed
from worker.base.files import StateFolder
from worker.base.stop import Flag
from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import BOUNDS, Bounds, Found, Spool
from worker.delivery.storage import Storage, video_key
from worker.delivery.storage.base import Delivery, Files, with_links
from worker.delivery.storage.local import LocalStorage
from worker.media import VideoFile
from worker.request.payload import OutputFormat

FORK = multiprocessing.get_context("fork")
DAY = datetime.date(2026, 11, 21)
JOB, DIGEST = "abc-123", "d" * 64
PROMPT = "a heron stands in the reeds"
NEVER = threading.Event()
TIGHT = Bounds(size_bytes=10_000, videos=2)


class Place:
    """One STATE_DIR and one storage, as the workers of an endpoint share them; its clock can be moved ahead."""

    def __init__(self, root: Path) -> None:
        self.root, self.ahead_s = root, 0.0
        self.storage = LocalStorage(root / "out")
        self.journal = Journal(StateFolder(root / "state"), now=self.now)
        self.spool = self.another_worker()

    def now(self) -> float:
        return time.time() + self.ahead_s

    def another_worker(self, bounds: Bounds = BOUNDS) -> Spool:
        state = StateFolder(self.root / "state")
        return Spool(state, Journal(state, now=self.now), bounds=bounds, now=self.now)

    def accept(self, job_id: str = JOB, digest: str = DIGEST) -> Entry:
        return self.journal.accept(job_id, digest, today=DAY, seeds=[1])

    def storage_is_down(self) -> None:
        (self.root / "out").write_text("a file in the way")

    def storage_is_back(self) -> None:
        (self.root / "out").unlink()

    @property
    def folder(self) -> Path:
        return self.root / "state" / "spool"

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []

    def kept(self) -> list[int]:
        """The indexes of the videos that are kept."""
        return sorted(int(name[-6:-4]) for name in self.files if name.endswith(".mp4") and name[0] != ".")

    def stored(self, index: int = 0) -> bytes:
        return (self.root / "out" / f"{video_key(JOB, index, DAY)}.mp4").read_bytes()

    def keep(
        self, content: bytes = b"video bytes", index: int = 0, *, spool: Spool | None = None, **options: Any
    ) -> VideoFile:
        video = make_video(self.root / "job", content, **options)
        (self.spool if spool is None else spool).keep(video, self.accept(), index, result_of(video, index))
        return video

    def found(self, index: int = 0) -> Found:
        kept = self.spool.find(JOB, index)
        assert kept is not None
        return kept

    def upload(self, found: Found, storage: Storage | None = None, **options: Any) -> dict[str, Any]:
        storage = self.storage if storage is None else storage
        return self.spool.upload(found, storage, **{"stop": NEVER, **options})

    def finished(self) -> dict[int, dict[str, Any]]:
        entry = self.journal.entry(JOB)
        assert entry is not None
        return entry.finished


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


class Slow:
    """A storage whose uploads wait for `go_on`, and that counts them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.stored: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        self.stored.append(key)
        self.begun.set()
        assert self.go_on.wait(20)
        return self._storage.store(video, key, stop=stop)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], object]], Callable[[], object]]]:
    """Runs something beside the test; what it gives back waits for the result."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> Callable[[], object]:
        outcome: list[object] = []
        threads.append(threading.Thread(target=lambda: outcome.append(work())))
        thread = threads[-1]
        thread.start()

        def result() -> object:
            thread.join(30)
            return outcome[0]

        return result

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


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


# --- several workers


def test_two_workers_store_a_video_once(place: Place, background: Any) -> None:
    place.keep()
    slow = Slow(place.storage)
    first = background(lambda: place.spool.drain(slow))
    assert slow.begun.wait(20)
    place.another_worker().drain(slow)
    slow.go_on.set()
    first()
    assert len(slow.stored) == 1
    assert place.files == []


def test_a_redelivered_job_waits_for_the_worker_that_is_storing_its_video(place: Place, background: Any) -> None:
    place.keep()
    kept, slow = place.found(), Slow(place.storage)
    background(lambda: place.another_worker().drain(slow))
    assert slow.begun.wait(20)
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.upload(kept, slow, wait_s=0.1)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.upload(kept, slow, stop=stopped, wait_s=60)
    waiting = background(lambda: place.upload(kept, slow))
    slow.go_on.set()
    assert waiting() == place.finished()[0]
    assert len(slow.stored) == 1


def test_a_kept_video_that_vanished_unstored_is_an_upload_that_failed(place: Place) -> None:
    place.keep()
    kept = place.found()
    kept.video.path.unlink()
    with pytest.raises(UploadFailed, match="gone"):
        place.upload(kept)


@pytest.mark.parametrize("way", ["budget", "stop"])
def test_a_round_ends_with_its_budget_and_on_a_stop(place: Place, way: str) -> None:
    for index in range(3):
        place.keep(bytes([index]), index)
    stop = threading.Event()
    if way == "stop":
        stop.set()
    place.spool.drain(place.storage, stop=stop, budget_s=0.0 if way == "budget" else 60.0)
    assert place.kept() == [0, 1, 2]
    place.spool.drain(place.storage)
    assert place.kept() == []


def test_the_lock_of_a_dead_worker_does_not_hold_the_video(place: Place) -> None:
    place.keep()
    ready, sent = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_hold, args=(place.found().video.path, sent))
    process.start()
    ready.recv()
    place.spool.drain(place.storage)
    assert place.kept() == [0]
    process.kill()
    process.join()
    place.spool.drain(place.storage)
    assert place.kept() == []


def _hold(path: Path, sent: Any) -> None:
    with locks.claim(path):
        sent.send("held")
        time.sleep(60)


# --- bounded space


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


def used(place: Place) -> int:
    return sum(path.stat().st_size for path in place.folder.iterdir())


def test_the_oldest_goes_when_the_room_is_used_up(place: Place) -> None:
    for index in (0, 1):
        place.keep(b"a" * 10_000, index)
    exactly = place.another_worker(Bounds(size_bytes=used(place) + 10_000, videos=200))
    place.keep(b"c" * 10_000, 2, spool=exactly, poster=None)
    assert place.kept() == [0, 1, 2]
    a_byte_less = place.another_worker(Bounds(size_bytes=used(place) + 10_000 - 1, videos=200))
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


def test_the_video_that_a_worker_is_storing_never_goes(place: Place, background: Any) -> None:
    place.keep(b"oldest")
    slow = Slow(place.storage)
    draining = background(lambda: place.spool.drain(slow))
    assert slow.begun.wait(20)
    for index in (1, 2):
        place.keep(bytes([index]), index, spool=place.another_worker(TIGHT))
    assert place.kept() == [0, 2]
    slow.go_on.set()
    draining()
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


def test_what_is_held_is_counted(place: Place, tmp_path: Path) -> None:
    place.accept()
    assert place.spool.held() == (0, 0)
    for index in range(2):
        place.keep(b"v" * (1000 + index), index)
    assert place.spool.held() == (2, used(place))
    place.spool.drain(place.storage)
    assert place.spool.held() == (0, 0)


# --- damage, death and disks


@pytest.mark.parametrize("damage", ["a byte", "cut", "lost"])
def test_a_damaged_copy_is_dropped_and_never_uploaded(place: Place, damage: str) -> None:
    place.keep()
    kept = place.found()
    if damage == "lost":
        kept.video.path.unlink()
    else:
        kept.video.path.write_bytes(b"video bytez" if damage == "a byte" else b"video")
    with pytest.raises(UploadFailed, match="gone"):
        place.upload(kept)
    assert place.spool.find(JOB, 0) is None
    assert place.kept() == []
    assert not (place.root / "out").exists()
    place.keep(b"made again")
    assert place.upload(place.found())["status"] == "completed"


@pytest.mark.parametrize("fault", ["damaged", "lost", "no JSON"])
def test_a_video_that_cannot_be_kept_leaves_nothing(place: Place, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    video = make_video(place.root / "job")
    result = result_of(video)
    if fault == "damaged":
        video.path.write_bytes(b"VIDEO BYTES")
    elif fault == "lost":
        video.path.unlink()
    else:
        result["prompt"] = "\ud800"
    place.spool.keep(video, place.accept(), 0, result)
    assert place.files == []
    assert ("STATE_DIR" in caplog.text) == (fault != "damaged")


def test_an_unwritable_folder_is_said_once_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file in the way")
    state = StateFolder(tmp_path / "state")
    spool = Spool(state, Journal(state))
    entry = Entry(job_id=JOB, payload_digest=DIGEST, accepted_on=DAY, accepted_at=time.time(), seeds=(1,))
    video = make_video(tmp_path / "job")
    for index in (0, 1):
        spool.keep(video, entry, index, result_of(video))
    assert spool.find(JOB, 0) is None
    spool.drain(LocalStorage(tmp_path / "out"))
    assert spool.held() == (0, 0)
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("what", ["video", "poster", "entry"])
def test_a_full_volume_leaves_nothing_behind(place: Place, what: str) -> None:
    large = b"v" * 20_000
    video = make_video(place.root / "job", large if what == "video" else b"v", large if what == "poster" else b"p")
    result = {**result_of(video), "prompt": "x" * 20_000 if what == "entry" else "x"}
    entry = place.accept()
    with no_file_above(10_000):
        place.spool.keep(video, entry, 0, result)
    assert place.files == []
    assert place.spool.find(JOB, 0) is None


def _keep_from_a_pipe(place: Place, file: str) -> None:
    video = make_video(place.root / "job", b"v" * 300_000, b"p" * 1000)
    slow = video.path if file == "video" else video.poster
    assert slow is not None
    slow.unlink()
    os.mkfifo(slow)
    pipe = os.open(slow, os.O_RDWR)
    os.write(pipe, b"half")
    place.spool.keep(video, place.accept(), 0, result_of(video))


@pytest.mark.parametrize("file", ["video", "poster"])
def test_kill_9_while_copying_leaves_nothing_visible_and_is_swept(place: Place, file: str) -> None:
    # The file to be copied is a pipe that gives its first bytes and no more: the copy stands still half-way.
    process = FORK.Process(target=_keep_from_a_pipe, args=(place, file))
    process.start()
    suffix = ".mp4" if file == "video" else ".jpg"
    while not any(name.endswith(suffix) for name in place.files):
        time.sleep(0.002)
    process.kill()
    process.join()
    left = place.files
    assert len(left) == (1 if file == "video" else 2)
    assert place.spool.find(JOB, 0) is None
    assert place.spool.held()[0] == 0
    place.ahead_s = 3600 - 60
    place.spool.drain(place.storage)
    assert place.files == left
    place.ahead_s = 3600 + 60
    place.spool.drain(place.storage)
    assert place.files == []


def _keep_for_ever(place: Place, folder: Path) -> None:
    video = make_video(folder, b"v" * 300_000, b"p" * 1000)
    for number in range(100_000):
        job_id = f"job-{number // 90}"
        entry = place.journal.accept(job_id, DIGEST, today=DAY, seeds=[1])
        place.spool.keep(video, entry, number % 90, result_of(video, number % 90, job_id))


def test_kill_9_at_any_moment_leaves_whole_videos_only(place: Place) -> None:
    moments = random.Random(5)
    for number in range(4):
        before = len(place.files)
        process = FORK.Process(target=_keep_for_ever, args=(place, place.root / f"job{number}"))
        process.start()
        while len(place.files) <= before + 2:
            time.sleep(0.001)
        time.sleep(moments.uniform(0.0, 0.03))
        process.kill()
        process.join()
    videos = [path for path in place.folder.glob("*.mp4") if path.name[0] != "."]
    assert videos
    sha256 = hashlib.sha256(b"v" * 300_000).hexdigest()
    for path in videos:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
        assert path.with_suffix(".jpg").stat().st_size == 1000
    place.ahead_s = 2 * 3600
    place.storage_is_down()
    place.spool.drain(place.storage)
    assert sorted(place.folder.glob("*.mp4")) == sorted(videos)  # each has its record, and no half copy is left


def test_a_file_of_another_name_stays_for_7_days(place: Place) -> None:
    place.keep()
    stranger = place.folder / "notes.txt"
    stranger.write_text("whose?")
    place.ahead_s = files.KEEP_S - 60
    place.storage_is_down()
    place.spool.drain(place.storage)
    assert stranger.exists()
    place.ahead_s = files.KEEP_S + 60
    place.spool.drain(place.storage)
    assert not stranger.exists()


# --- what a worker of an earlier version left


def as_before(place: Place, index: int = 0, **fields: Any) -> Path:
    """Three files of one stem, as version 0.1 wrote them; returns the JSON."""
    video = make_video(place.root / "job", b"kept before")
    assert video.poster is not None
    place.folder.mkdir(parents=True, exist_ok=True)
    old = place.folder / f"{files.file_key(JOB)}-{index:02d}-12345678.json"
    video.path.rename(old.with_suffix(".mp4"))
    video.poster.rename(old.with_suffix(".jpg"))
    size = {"width": 64, "height": 32, "num_frames": 9, "fps": 16, "size_bytes": 11, "sha256": video.sha256}
    key = video_key(JOB, index, DAY)
    known = {"job_id": JOB, "payload_digest": DIGEST, "index": index, "key": key, **size}
    old.write_text(json.dumps({**known, "result": result_of(video, index), **fields}))
    return old


@pytest.mark.parametrize("way", ["found", "drained"])
def test_a_video_that_an_earlier_version_kept_is_stored(place: Place, way: str) -> None:
    place.accept()
    as_before(place, 3)
    if way == "found":
        result = place.upload(place.found(3))
    else:
        place.spool.drain(place.storage)
        result = place.finished()[3]
    assert place.stored(3) == b"kept before"
    assert result["thumbnail_url"].endswith("/3.jpg")
    assert place.files == []


@pytest.mark.parametrize("why", ["no entry", "another payload", "no JSON"])
def test_what_cannot_be_taken_over_is_set_aside(place: Place, why: str, caplog: pytest.LogCaptureFixture) -> None:
    if why != "no entry":
        place.accept()
    old = as_before(place, **({"payload_digest": "e" * 64} if why == "another payload" else {}))
    if why == "no JSON":
        old.write_text("{")
    names = place.files
    place.spool.drain(place.storage)
    assert place.files == [f"{name}.damaged" for name in names]
    assert all(name in caplog.text for name in names)


def test_a_video_that_a_worker_of_the_earlier_version_is_storing_is_left_to_it(place: Place) -> None:
    place.accept()
    old = as_before(place)
    names = place.files
    with locks.claimed(old):
        place.spool.drain(place.storage)
        assert place.files == names
    place.spool.drain(place.storage)
    assert place.files == []


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


# --- one drain a process, and nobody beside the worker that stores


def test_a_second_drain_of_the_process_returns_at_once(place: Place, background: Any) -> None:
    for index in (0, 1):
        place.keep(index=index)
    slow = Slow(place.storage)
    first = background(lambda: place.spool.drain(slow))
    assert slow.begun.wait(20)
    place.spool.drain(slow)
    assert len(slow.stored) == 1
    slow.go_on.set()
    first()
    assert place.kept() == []


def test_a_drain_leaves_a_video_that_another_worker_is_storing_itself(place: Place) -> None:
    place.keep()
    with place.journal.storing(JOB, 0, wait_s=0.0):
        place.spool.drain(place.storage)
        assert place.kept() == [0]
    place.spool.drain(place.storage)
    assert place.kept() == []
