"""The folder storage: real files, real errors of the operating system."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import stat
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.kits.delivery import KEY, make_video, no_file_above
from tests.kits.webhooks import Clock
from worker.base.errors import UploadFailed
from worker.delivery.storage.local import LocalStorage
from worker.media import VideoFile


def path_of(url: str) -> Path:
    assert url.startswith("file:///")
    return Path(unquote(urlsplit(url).path))


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_both_files_lie_under_their_key(tmp_path: Path) -> None:
    video = make_video(tmp_path / "temp", b"v" * 3_000_000)
    delivery = LocalStorage(tmp_path / "out put").store(video, KEY)
    assert files_below(tmp_path / "out put") == [f"{KEY}.jpg", f"{KEY}.mp4"]
    assert path_of(delivery.video_url).read_bytes() == b"v" * 3_000_000
    assert delivery.thumbnail_url is not None
    assert path_of(delivery.thumbnail_url).read_bytes() == b"poster bytes"


def test_files_can_be_read_by_a_web_server(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        delivery = LocalStorage(tmp_path / "out").store(make_video(tmp_path / "temp"), KEY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(delivery.video_url).stat().st_mode) == 0o644


def test_a_relative_folder_is_fixed_when_the_storage_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = LocalStorage(Path("./outputs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    delivery = storage.store(make_video(tmp_path / "temp"), KEY)
    assert path_of(delivery.video_url) == tmp_path / "outputs" / f"{KEY}.mp4"
    assert storage.describe() == "folder outputs"


def test_a_write_that_fails_half_way_leaves_nothing_visible(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    older = storage.store(make_video(tmp_path / "temp", b"older"), KEY)
    video = make_video(tmp_path / "temp", b"v" * 4_000_000)
    with no_file_above(2_000_000), pytest.raises(UploadFailed, match="OUTPUT_DIR takes no file of this size") as caught:
        storage.store(video, KEY)
    assert isinstance(caught.value.__cause__, OSError)
    assert files_below(tmp_path / "out") == [f"{KEY}.jpg", f"{KEY}.mp4"]
    assert path_of(older.video_url).read_bytes() == b"older"
    assert video.path.stat().st_size == 4_000_000


ELSEWHERE = "or point OUTPUT_DIR elsewhere, then send the job again"
PERMIT = f"give the worker's user permission (chown, or a writable mount), {ELSEWHERE}"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, f"OUTPUT_DIR is full: free space there or enlarge it, {ELSEWHERE}"),
        (errno.EACCES, f"OUTPUT_DIR may not be written to: {PERMIT}"),
        (errno.EROFS, f"OUTPUT_DIR is read-only: mount it writable, {ELSEWHERE}"),
        (errno.ETXTBSY, f"OUTPUT_DIR cannot be used (ETXTBSY): check the folder, {ELSEWHERE}"),
    ],
)
def test_errors_of_the_last_step_name_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    # A network volume reports a full quota when data is flushed; a test as root cannot provoke the other ones.
    def fail(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number), "/secret/place")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UploadFailed) as caught:
        LocalStorage(tmp_path / "out").store(make_video(tmp_path / "temp"), KEY)
    assert str(caught.value) == message
    assert files_below(tmp_path / "out") == []


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("not a folder")
    with pytest.raises(UploadFailed) as caught:
        LocalStorage(tmp_path / "out").store(make_video(tmp_path / "temp"), KEY)
    assert str(caught.value) == f"OUTPUT_DIR is not a folder: name another folder, {ELSEWHERE}"


def test_a_stop_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        LocalStorage(tmp_path / "out").store(make_video(tmp_path / "temp"), KEY)
    assert files_below(tmp_path / "out") == []


# --- what a killed worker leaves

FORK = multiprocessing.get_context("fork")
DAY_S = 24 * 3600.0


def _die_while_copying(folder: Path, video: VideoFile) -> None:
    def die(_descriptor: int) -> None:
        os.kill(os.getpid(), 9)

    os.fsync = die  # type: ignore[assignment]
    LocalStorage(folder).store(video, KEY)


def part_left_behind(tmp_path: Path) -> Path:
    """The unfinished file of a process that was killed with -9 while it stored a video."""
    process = FORK.Process(target=_die_while_copying, args=(tmp_path / "out", make_video(tmp_path / "temp")))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    process.close()
    (part,) = (tmp_path / "out").rglob("*.part")
    return part


def aged(part: Path, age_s: float) -> Path:
    then = time.time() - age_s
    os.utime(part, (then, then))
    return part


@pytest.mark.parametrize(("age_s", "goes"), [(DAY_S - 60, False), (DAY_S + 60, True)])
def test_the_unfinished_file_of_a_killed_worker_goes_after_a_day(
    tmp_path: Path, age_s: float, goes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    part = aged(part_left_behind(tmp_path), age_s)
    storage = LocalStorage(tmp_path / "out")
    storage.store(make_video(tmp_path / "temp"), KEY)
    storage.sweep()
    assert part.exists() != goes
    assert ("removed 1 unfinished file(s)" in caplog.text) == goes
    assert {f"{KEY}.jpg", f"{KEY}.mp4"} <= set(files_below(tmp_path / "out"))


def test_it_is_looked_for_once_an_hour(tmp_path: Path) -> None:
    clock = Clock()
    storage = LocalStorage(tmp_path / "out", clock=clock)
    storage.sweep()
    part = aged(part_left_behind(tmp_path), 2 * DAY_S)
    clock.now += 3599
    storage.sweep()
    assert part.exists()
    clock.now += 1
    storage.sweep()
    assert not part.exists()


def test_a_file_that_is_being_written_stays_however_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path / "out")
    left: list[int] = []

    def while_writing(_descriptor: int) -> None:
        for part in (tmp_path / "out").rglob("*.part"):
            aged(part, 30 * DAY_S)
        LocalStorage(tmp_path / "out").sweep()
        left.append(len(list((tmp_path / "out").rglob("*.part"))))

    monkeypatch.setattr(os, "fsync", while_writing)
    storage.store(make_video(tmp_path / "temp"), KEY)
    assert left == [1, 1]
    assert files_below(tmp_path / "out") == [f"{KEY}.jpg", f"{KEY}.mp4"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "videos" / "2026-11-21" / "abc-123"
    folder.mkdir(parents=True)
    for name in ("download.part", ".hidden", "0.mp4"):
        (folder / name).write_bytes(b"x")
        aged(folder / name, 30 * DAY_S)
    aged_part = tmp_path / "out" / ".elsewhere.part"
    aged_part.write_bytes(b"x")
    aged(aged_part, 30 * DAY_S)
    before = files_below(tmp_path / "out")
    LocalStorage(tmp_path / "out").sweep()
    assert files_below(tmp_path / "out") == before


def test_a_sweep_of_a_folder_that_is_not_there_stops_nothing(tmp_path: Path) -> None:
    LocalStorage(tmp_path / "none").sweep()
    (tmp_path / "file").write_text("in the way")
    LocalStorage(tmp_path / "file").sweep()


# --- is the video still there


def test_a_file_that_was_deleted_or_changed_is_not_held(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    video = make_video(tmp_path / "temp")
    storage.store(video, KEY)
    path = tmp_path / "out" / f"{KEY}.mp4"
    path.write_bytes(b"VIDEO BYTES")
    assert not storage.holds(f"{KEY}.mp4", sha256=video.sha256)
    path.unlink()
    assert not storage.holds(f"{KEY}.mp4", sha256=video.sha256)


def test_a_folder_that_cannot_be_read_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "out" / f"{KEY}.mp4").mkdir(parents=True)
    with pytest.raises(UploadFailed, match="OUTPUT_DIR") as caught:
        LocalStorage(tmp_path / "out").holds(f"{KEY}.mp4", sha256="0" * 64)
    assert str(tmp_path) not in str(caught.value)
