"""The spool with real files, the real journal and the folder storage, which a file in its way takes out of order."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from worker.base import files as statefiles
from worker.base.errors import UploadFailed
from worker.base.files import StateFolder
from worker.delivery.journal import Journal
from worker.delivery.spool import BOUNDS, Bounds, Found, Spool, with_links
from worker.delivery.storage import Storage, video_key
from worker.delivery.storage.base import Delivery
from worker.delivery.storage.local import LocalStorage
from worker.media import VideoFile

ROOT = Path(__file__).parents[3]
DAY = datetime.date(2026, 11, 21)
JOB, DIGEST = "abc-123", "d" * 64
PROMPT = "a heron stands in the reeds"
NEVER = threading.Event()


class Times:
    """A clock that stands at the real time until it is moved."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


@dataclass
class Place:
    """One STATE_DIR and one storage, as the workers of an endpoint share them."""

    root: Path
    times: Times = field(default_factory=Times)

    def __post_init__(self) -> None:
        self.storage = LocalStorage(self.root / "out")
        self.state = StateFolder(self.root / "state")
        self.journal = Journal(self.state, now=self.times)
        self.spool = self.another_worker()

    def another_worker(self, **options: Any) -> Spool:
        return Spool(StateFolder(self.root / "state"), now=self.times, **options)

    def accept(self, job_id: str = JOB, digest: str = DIGEST) -> None:
        self.journal.accept(job_id, digest, today=DAY, seeds=[1])

    def storage_is_down(self) -> None:
        (self.root / "out").write_text("a file in the way")

    def storage_is_back(self) -> None:
        (self.root / "out").unlink()

    @property
    def files(self) -> list[str]:
        folder = self.root / "state" / "spool"
        return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []

    def entries(self) -> list[Path]:
        return sorted((self.root / "state" / "spool").glob("*.json"))

    def stored(self, index: int = 0, job_id: str = JOB) -> bytes:
        return (self.root / "out" / f"{video_key(job_id, index, DAY)}.mp4").read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def make_video(folder: Path, content: bytes = b"video bytes", poster: bytes | None = b"poster bytes") -> VideoFile:
    folder.mkdir(parents=True, exist_ok=True)
    path, poster_path = folder / "0.mp4", folder / "0.jpg"
    path.write_bytes(content)
    if poster is not None:
        poster_path.write_bytes(poster)
    digest = hashlib.sha256(content).hexdigest()
    return VideoFile(path, poster_path if poster is not None else None, 64, 32, 9, 16, len(content), digest)


def result_of(video: VideoFile, index: int = 0, job_id: str = JOB) -> dict[str, Any]:
    return {
        "index": index,
        "status": "completed",
        "job_id": job_id,
        "video_url": "",
        "thumbnail_url": None,
        "prompt": PROMPT,
        "seed": 7,
        "sha256": video.sha256,
        "timings": {"generate": 3.0, "upload": 1.5, "total": 5.0},
    }


def keep(place: Place, video: VideoFile, *, index: int = 0, job_id: str = JOB, spool: Spool | None = None) -> bool:
    return (place.spool if spool is None else spool).keep(
        video,
        job_id=job_id,
        payload_digest=DIGEST,
        index=index,
        key=video_key(job_id, index, DAY),
        result=result_of(video, index, job_id),
    )


def find(place: Place, *, index: int = 0, job_id: str = JOB, digest: str = DIGEST, day: Any = DAY) -> Found | None:
    return place.spool.find(job_id=job_id, payload_digest=digest, index=index, key=video_key(job_id, index, day))


def found(place: Place, index: int = 0) -> Found:
    kept = find(place, index=index)
    assert kept is not None
    return kept


class Slow:
    """A storage whose uploads wait for `go_on`, and that counts them."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.stored: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def store(self, video: VideoFile, key: str) -> Delivery:
        self.stored.append(key)
        self.begun.set()
        assert self.go_on.wait(20)
        return self._storage.store(video, key)

    def holds(self, key: str, *, sha256: str) -> bool:
        return self._storage.holds(key, sha256=sha256)

    def links(self, key: str, *, poster: bool) -> Delivery:
        return self._storage.links(key, poster=poster)

    def describe(self) -> str:
        return "slow"


@pytest.fixture
def background() -> Iterator[Callable[[Callable[[], object]], list[object]]]:
    """Runs something beside the test; the list that it answers gets the outcome, an exception too."""
    threads: list[threading.Thread] = []

    def start(work: Callable[[], object]) -> list[object]:
        outcome: list[object] = []

        def run() -> None:
            try:
                outcome.append(work())
            except UploadFailed as failure:
                outcome.append(failure)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return outcome

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


# --- a video through the spool


def test_what_is_kept_is_stored_later_with_its_own_result(place: Place, tmp_path: Path) -> None:
    place.accept()
    video = make_video(tmp_path / "job")
    assert keep(place, video)
    assert len(place.files) == 3
    for path in (tmp_path / "state" / "spool").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert video.path.read_bytes() == b"video bytes"  # the job's own copy stays
    result = place.spool.upload(found(place), place.storage, place.journal, stop=NEVER)
    assert place.stored() == b"video bytes"
    assert place.files == []
    entry = place.journal.entry(JOB)
    assert entry is not None
    assert entry.finished == {0: result}
    delivery = place.storage.links(video_key(JOB, 0, DAY), poster=True)
    timings = result.pop("timings")
    expected = with_links(result_of(video), delivery)
    assert {**result, "timings": expected["timings"]} == expected
    assert list(result) == [name for name in expected if name != "timings"]
    assert timings["generate"] == 3.0
    assert timings["upload"] >= 1.5
    assert timings["total"] - timings["upload"] == pytest.approx(3.5)


def test_a_storage_that_is_still_down_leaves_the_video_for_another_worker(place: Place, tmp_path: Path) -> None:
    place.accept()
    place.storage_is_down()
    keep(place, make_video(tmp_path / "job"))
    before = place.files
    with pytest.raises(UploadFailed, match="a file is in the way"):
        place.spool.upload(found(place), place.storage, place.journal, stop=NEVER)
    assert place.spool.drain(place.storage, place.journal) == 0
    assert place.files == before
    place.storage_is_back()
    assert place.another_worker().drain(place.storage, place.journal) == 1
    assert place.stored() == b"video bytes"
    assert place.files == []
    entry = place.journal.entry(JOB)
    assert entry is not None
    assert entry.finished[0]["video_url"].endswith("/abc-123/0.mp4")


def test_a_dead_storage_is_asked_once_a_round(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place.accept()
    place.storage_is_down()
    for index in range(4):
        keep(place, make_video(tmp_path / "job", bytes([index])), index=index)
    caplog.clear()
    assert place.spool.drain(place.storage, place.journal) == 0
    assert sum("writing" in record.getMessage() for record in caplog.records) == 1


def test_without_a_poster_there_is_no_thumbnail_and_a_lost_one_costs_no_more(place: Place, tmp_path: Path) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "a", b"one", poster=None), index=0)
    keep(place, make_video(tmp_path / "b", b"two"), index=1)
    assert len(place.files) == 5
    found(place, 1).place.with_suffix(".jpg").unlink()
    for index in (0, 1):
        result = place.spool.upload(found(place, index), place.storage, place.journal, stop=NEVER)
        assert result["thumbnail_url"] is None
    assert place.files == []


def test_only_the_same_video_of_the_same_payload_is_found(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job"), index=1)
    assert find(place, index=1) is not None
    assert find(place, index=0) is None
    assert find(place, index=10) is None
    assert find(place, index=1, job_id="ABC-123") is None
    assert find(place, index=1, digest="e" * 64) is None
    assert find(place, index=1, day=DAY + datetime.timedelta(1)) is None


def test_the_first_that_is_kept_of_a_video_stays(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "a", b"first"))
    before = place.files
    assert keep(place, make_video(tmp_path / "b", b"second"))
    assert place.files == before


def test_a_new_payload_under_the_same_id_replaces_what_was_kept(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "a", b"first"))
    video = make_video(tmp_path / "b", b"second")
    place.spool.keep(
        video, job_id=JOB, payload_digest="e" * 64, index=0, key=video_key(JOB, 0, DAY), result=result_of(video)
    )
    assert find(place) is None
    assert find(place, digest="e" * 64) is not None
    assert len(place.files) == 3


def test_neither_log_nor_repr_holds_the_prompt(place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    assert PROMPT in place.entries()[0].read_text()
    kept = found(place)
    assert PROMPT not in repr(kept)
    place.entries()[0].write_text(json.dumps({"result": {"prompt": PROMPT}}))
    assert find(place) is None
    assert PROMPT not in caplog.text


# --- the journal decides


def test_a_video_that_is_stored_already_is_not_stored_again(place: Place, tmp_path: Path) -> None:
    place.accept()
    video = make_video(tmp_path / "job")
    keep(place, video)
    delivery = place.storage.store(video, video_key(JOB, 0, DAY))
    recorded = with_links(result_of(video), delivery)
    place.journal.record_result(JOB, 0, recorded)
    slow = Slow(place.storage)
    assert place.spool.upload(found(place), slow, place.journal, stop=NEVER) == recorded
    assert slow.stored == []
    assert place.files == []


def test_a_recorded_video_that_is_gone_from_the_storage_is_stored_again(place: Place, tmp_path: Path) -> None:
    place.accept()
    video = make_video(tmp_path / "job")
    keep(place, video)
    place.journal.record_result(JOB, 0, result_of(video))
    assert place.spool.drain(place.storage, place.journal) == 1
    assert place.stored() == b"video bytes"


def test_a_job_that_the_journal_does_not_know_waits_for_its_redelivery(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job"))
    assert place.spool.drain(place.storage, place.journal) == 0
    assert not (tmp_path / "out").exists()
    result = place.spool.upload(found(place), place.storage, place.journal, stop=NEVER)
    assert result["video_url"].endswith("/abc-123/0.mp4")
    assert len(place.files) == 3  # nothing was recorded: a redelivery would need it again


def test_a_job_id_with_a_newer_payload_drops_the_older_video(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job"))
    place.accept(digest="e" * 64)
    assert place.spool.drain(place.storage, place.journal) == 0
    assert place.files == []
    assert not (tmp_path / "out").exists()


# --- several workers


def test_two_workers_store_a_video_once(place: Place, tmp_path: Path, background: Any) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    slow = Slow(place.storage)
    first = background(lambda: place.spool.drain(slow, place.journal))
    assert slow.begun.wait(20)
    assert place.another_worker().drain(slow, place.journal) == 0
    slow.go_on.set()
    while not first:
        time.sleep(0.01)
    assert first == [1]
    assert len(slow.stored) == 1
    assert place.files == []


def test_a_redelivered_job_waits_for_the_worker_that_is_storing_its_video(
    place: Place, tmp_path: Path, background: Any
) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    kept = found(place)
    slow = Slow(place.storage)
    background(lambda: place.another_worker().drain(slow, place.journal))
    assert slow.begun.wait(20)
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.spool.upload(kept, slow, place.journal, stop=NEVER, wait_s=0.1)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.spool.upload(kept, slow, place.journal, stop=stopped, wait_s=60)
    waiting = background(lambda: place.spool.upload(kept, slow, place.journal, stop=NEVER))
    time.sleep(0.1)
    assert waiting == []
    slow.go_on.set()
    while not waiting:
        time.sleep(0.01)
    entry = place.journal.entry(JOB)
    assert entry is not None
    assert waiting == [entry.finished[0]]
    assert len(slow.stored) == 1


def test_a_kept_video_that_vanished_unstored_is_an_upload_that_failed(place: Place, tmp_path: Path) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    kept = found(place)
    kept.place.unlink()
    with pytest.raises(UploadFailed, match="gone"):
        place.spool.upload(kept, place.storage, place.journal, stop=NEVER)


@pytest.mark.parametrize("way", ["budget", "stop"])
def test_a_round_ends_with_its_budget_and_on_a_stop(place: Place, tmp_path: Path, way: str) -> None:
    place.accept()
    for index in range(3):
        keep(place, make_video(tmp_path / "job", bytes([index])), index=index)
    stop = threading.Event()
    slow = Slow(place.storage)
    slow.go_on.set()
    if way == "stop":
        stop.set()
    assert place.spool.drain(slow, place.journal, stop=stop, budget_s=0.0 if way == "budget" else 60.0) == 0
    assert slow.stored == []
    assert place.spool.drain(slow, place.journal) == 3


# --- bounded space


def test_the_bounds() -> None:
    assert Bounds(5 * 1024**3, 200) == BOUNDS


def indexes(place: Place) -> list[int]:
    return sorted(json.loads(path.read_text())["index"] for path in place.entries())


def test_the_oldest_goes_when_there_are_too_many(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = place.another_worker(bounds=Bounds(size_bytes=10_000_000, videos=3))
    for index in (2, 0, 1):
        assert keep(place, make_video(tmp_path / "job"), index=index, spool=spool)
    assert indexes(place) == [0, 1, 2]
    assert "goes" not in caplog.text
    assert keep(place, make_video(tmp_path / "job"), index=3, spool=spool)
    assert indexes(place) == [0, 1, 3]
    assert len(place.files) == 9
    assert "newer ones need its room" in caplog.text


def test_the_oldest_goes_when_the_room_is_used_up(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job", b"a" * 10_000), index=0)
    keep(place, make_video(tmp_path / "job", b"b" * 10_000), index=1)
    used = sum(path.stat().st_size for path in (tmp_path / "state" / "spool").iterdir())
    third = make_video(tmp_path / "job", b"c" * 10_000, poster=None)
    exactly = place.another_worker(bounds=Bounds(size_bytes=used + 10_000, videos=200))
    keep(place, third, index=2, spool=exactly)
    assert indexes(place) == [0, 1, 2]
    used = sum(path.stat().st_size for path in (tmp_path / "state" / "spool").iterdir())
    a_byte_less = place.another_worker(bounds=Bounds(size_bytes=used + 10_000 - 1, videos=200))
    keep(place, third, index=3, spool=a_byte_less)
    assert indexes(place) == [1, 2, 3]
    large = make_video(tmp_path / "job", b"d" * 25_000, poster=None)
    keep(place, large, index=4, spool=place.another_worker(bounds=Bounds(size_bytes=26_000, videos=200)))
    assert indexes(place) == [4]


def test_a_video_larger_than_all_the_room_is_not_kept(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job", b"a"), index=0)
    spool = place.another_worker(bounds=Bounds(size_bytes=10_000, videos=200))
    assert not keep(place, make_video(tmp_path / "job", b"b" * 10_001, poster=None), index=1, spool=spool)
    assert indexes(place) == [0]
    assert keep(place, make_video(tmp_path / "job", b"b" * 10_000, poster=None), index=1, spool=spool)
    assert indexes(place) == [1]


def test_the_video_that_a_worker_is_storing_never_goes(place: Place, tmp_path: Path, background: Any) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job", b"oldest"))
    slow = Slow(place.storage)
    draining = background(lambda: place.spool.drain(slow, place.journal))
    assert slow.begun.wait(20)
    tight = place.another_worker(bounds=Bounds(size_bytes=10_000, videos=2))
    keep(place, make_video(tmp_path / "job", b"second"), index=1, spool=tight)
    keep(place, make_video(tmp_path / "job", b"third"), index=2, spool=tight)
    assert indexes(place) == [0, 2]
    slow.go_on.set()
    while not draining:
        time.sleep(0.01)
    assert indexes(place) == [2]
    assert place.stored() == b"oldest"


def test_a_video_is_kept_for_7_days_and_no_longer(place: Place, tmp_path: Path) -> None:
    keep(place, make_video(tmp_path / "job"))
    place.times.ahead_s = statefiles.KEEP_S - 60
    assert place.spool.sweep() == 0
    assert find(place) is not None
    place.times.ahead_s = statefiles.KEEP_S + 60
    assert find(place) is None
    assert place.spool.sweep() == 1
    assert place.files == []


# --- damage, death and disks


@pytest.mark.parametrize("damage", ["a byte", "cut", "lost", "entry"])
def test_a_damaged_copy_is_dropped_and_never_uploaded(place: Place, tmp_path: Path, damage: str) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    kept = found(place)
    media = kept.place.with_suffix(".mp4")
    if damage == "lost":
        media.unlink()
    elif damage == "entry":
        kept.place.write_text('{"job_id": "abc-123"')
    else:
        media.write_bytes(b"video bytez" if damage == "a byte" else b"video")
    with pytest.raises(UploadFailed, match="gone"):
        place.spool.upload(kept, place.storage, place.journal, stop=NEVER)
    assert find(place) is None
    assert place.files == []
    assert not (tmp_path / "out").exists()


def test_a_video_that_was_damaged_on_the_workers_disk_is_not_kept(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = make_video(tmp_path / "job")
    video.path.write_bytes(b"VIDEO BYTES")
    assert not keep(place, video)
    assert place.files == []
    assert "STATE_DIR" not in caplog.text


def test_a_lost_video_is_not_kept_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    video = make_video(tmp_path / "job")
    video.path.unlink()
    assert not keep(place, video)
    assert place.files == []


def test_a_text_that_json_cannot_hold_costs_the_protection_only(place: Place, tmp_path: Path) -> None:
    video = make_video(tmp_path / "job")
    result = {**result_of(video), "prompt": "\ud800"}
    assert not place.spool.keep(
        video, job_id=JOB, payload_digest=DIGEST, index=0, key=video_key(JOB, 0, DAY), result=result
    )
    assert place.files == []


def test_an_unwritable_folder_is_said_once_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file in the way")
    place = Place(tmp_path)
    video = make_video(tmp_path / "job")
    assert not keep(place, video)
    assert not keep(place, video, index=1)
    assert find(place) is None
    assert place.spool.drain(place.storage, place.journal) == 0
    assert place.spool.sweep() == 0
    assert caplog.text.count("cannot be used") == 1


@pytest.mark.parametrize("what", ["video", "poster", "entry"])
def test_a_full_volume_leaves_nothing_behind(
    place: Place, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    large = b"v" * 20_000
    video = make_video(tmp_path / "job", large if what == "video" else b"v", large if what == "poster" else b"p")
    result = {**result_of(video), "prompt": "x" * 20_000 if what == "entry" else "x"}
    place.state.folder("spool")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        kept = place.spool.keep(
            video, job_id=JOB, payload_digest=DIGEST, index=0, key=video_key(JOB, 0, DAY), result=result
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not kept
    assert place.files == []
    assert caplog.text.count("cannot be used") == 1


CHILD = """
import sys
from pathlib import Path
from tests.unit.delivery.test_spool import DIGEST, JOB, Place, make_video, result_of, keep
place = Place(Path(sys.argv[1]))
video = make_video(Path(sys.argv[2]), b"v" * 300_000, b"p" * 1000)
"""
KEEPS_ONE = (
    CHILD
    + """
import os
hung = video.path if sys.argv[3] == "video" else video.poster
content = hung.read_bytes()
hung.unlink()
os.mkfifo(hung)
reader = os.open(hung, os.O_RDWR)
os.write(reader, content[:500])
print("copying", flush=True)
keep(place, video)
"""
)
KEEPS_MANY = (
    CHILD
    + """
print("copying", flush=True)
for index in range(100_000):
    keep(place, video, index=index % 99, job_id=f"job-{index // 99}")
"""
)


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("file", ["video", "poster"])
def test_kill_9_while_copying_leaves_nothing_visible_and_is_swept(place: Place, tmp_path: Path, file: str) -> None:
    # The file to be copied is a pipe that gives its first bytes and no more: the copy stands still half-way.
    process = child(KEEPS_ONE, tmp_path, tmp_path / "job", file)
    suffix = ".mp4" if file == "video" else ".jpg"
    while not any(name.endswith(suffix) for name in place.files):
        time.sleep(0.01)
    kill(process)
    assert len(place.files) == (1 if file == "video" else 2)
    place.accept()
    assert find(place) is None
    assert place.spool.drain(place.storage, place.journal) == 0
    place.times.ahead_s = 3600 - 60
    assert place.spool.sweep() == 0
    place.times.ahead_s = 3600 + 60
    assert place.spool.sweep() == (1 if file == "video" else 2)
    assert place.files == []


def test_kill_9_at_any_moment_leaves_whole_entries_only(place: Place, tmp_path: Path) -> None:
    moments = random.Random(5)
    for number in range(4):
        process = child(KEEPS_MANY, tmp_path, tmp_path / f"job{number}")
        time.sleep(moments.uniform(0.05, 0.3))
        kill(process)
    assert place.entries()
    for path in place.entries():
        kept = json.loads(path.read_bytes())
        assert hashlib.sha256(path.with_suffix(".mp4").read_bytes()).hexdigest() == kept["sha256"]
        assert path.with_suffix(".jpg").stat().st_size == 1000
    before = len(place.entries())
    place.times.ahead_s = 2 * 3600
    place.spool.sweep()
    assert len(place.entries()) == before
    assert len(place.files) == 3 * before


def test_a_lock_of_a_dead_worker_does_not_hold_the_video(place: Place, tmp_path: Path) -> None:
    place.accept()
    keep(place, make_video(tmp_path / "job"))
    holder = """
import sys
from pathlib import Path
from worker.base import files as statefiles
with statefiles.claimed(Path(sys.argv[1])):
    print("copying", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", holder, str(place.entries()[0])],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copying\n"
    assert place.spool.drain(place.storage, place.journal) == 0
    kill(process)
    assert process.stdin is not None
    process.stdin.close()
    assert place.spool.drain(place.storage, place.journal) == 1


def test_a_file_that_is_being_written_is_left_alone_for_an_hour(place: Place, tmp_path: Path) -> None:
    folder = place.state.folder("spool")
    (folder / ".tmp-abc").write_text("being written")
    assert place.spool.sweep() == 0
    os.utime(folder / ".tmp-abc", (time.time() - 3700,) * 2)
    assert place.spool.sweep() == 1


def test_what_is_held_is_counted(place: Place, tmp_path: Path) -> None:
    place.accept()
    assert place.spool.held() == (0, 0)
    for index in range(2):
        keep(place, make_video(tmp_path / str(index), b"v" * (1000 + index)), index=index)
    folder = tmp_path / "state" / "spool"
    assert place.spool.held() == (2, sum(file.stat().st_size for file in folder.iterdir()))
    assert place.spool.drain(LocalStorage(tmp_path / "out"), place.journal) == 2
    assert place.spool.held() == (0, 0)
    (tmp_path / "file").write_text("in the way")
    assert Spool(StateFolder(tmp_path / "file")).held() == (0, 0)


def test_the_record_of_a_video_that_is_gone_gives_way_to_the_kept_one(place: Place, tmp_path: Path) -> None:
    """It was stored and deleted, made again, and could not be stored: what is stored at last is what is recorded."""
    place.accept()
    place.journal.record_result(JOB, 0, {**result_of(make_video(tmp_path / "old", b"old bytes")), "seed": 1})
    video = make_video(tmp_path / "new", b"new bytes")
    keep(place, video)
    assert place.spool.drain(LocalStorage(tmp_path / "out"), place.journal) == 1
    entry = place.journal.entry(JOB)
    assert entry is not None
    assert (entry.finished[0]["sha256"], entry.finished[0]["seed"]) == (video.sha256, 7)
    assert place.files == []
