"""The spool where copies are damaged, workers are killed and disks are full; files that earlier versions left."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from tests.kits.delivery import make_video, no_file_above, result_of
from tests.kits.spool_kit import DAY, DIGEST, JOB, Place
from worker.base import files, locks
from worker.base.errors import UploadFailed
from worker.base.files import StateFolder
from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import Spool
from worker.delivery.storage import video_key
from worker.delivery.storage.local import LocalStorage

FORK = multiprocessing.get_context("fork")


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
