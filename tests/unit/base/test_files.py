from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import time
from pathlib import Path

import pytest

from worker.base import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    files.write_atomically(path, b"old")
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(tmp_path) == ["one.json"]


def test_a_quota_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "one.json"
    files.write_atomically(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="quota"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["one.json"]


def test_a_block_that_raises_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"old")

    def fail_after_writing(fresh: Path) -> None:
        fresh.write_bytes(b"new")
        assert (fresh.parent, files.is_temporary(fresh.name)) == (tmp_path, True)
        raise KeyError

    with pytest.raises(KeyError), files.replacing(path) as fresh:
        fail_after_writing(fresh)
    with pytest.raises(FileNotFoundError), files.replacing(path, lasting=False):
        pass  # wrote nothing
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["one"]


@pytest.mark.parametrize("lasting", [True, False])
def test_only_what_must_outlive_a_crash_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool
) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(stat.S_ISDIR(os.fstat(handle).st_mode)))
    with files.replacing(tmp_path / "one", lasting=lasting) as fresh:
        fresh.write_bytes(b"new")
    assert (tmp_path / "one").read_bytes() == b"new"
    assert synced == ([False, True] if lasting else [])  # the file, then its folder


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", file_only)
    files.write_atomically(tmp_path / "one", b"new")
    assert (tmp_path / "one").read_bytes() == b"new"


def test_a_mode_is_subject_to_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    files.write_atomically(tmp_path / "one", b"", mode=0o666)
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "one") == hashlib.sha256(b"abc").hexdigest()


def test_an_unusable_folder_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    state = files.StateFolder(tmp_path / "file")
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            state.folder("jobs")
        state.cannot(caught.value)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "STATE_DIR" in caplog.text


def test_file_names_hold_no_separator_and_differ_where_only_case_does() -> None:
    assert files.file_key("Job") != files.file_key("job")
    for job_id in ("a/b", "..", "x" * 500, "\ud800"):
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,48}", files.readable(job_id))
        assert len(files.file_key(job_id)) == 16


def test_the_sweep_takes_what_is_over_age_only(tmp_path: Path) -> None:
    now = 1_000_000_000.0
    ages = {"a.json": 7 * 86400 + 1, "b.json": 7 * 86400 - 1, ".tmp-c": 3601, ".tmp-d": 3599}
    for name, age_s in ages.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now - age_s, now - age_s))
    (tmp_path / "folder").mkdir()
    os.utime(tmp_path / "folder", (0, 0))
    assert files.sweep(tmp_path, now=now) == 2
    assert names(tmp_path) == [".tmp-d", "b.json", "folder"]


def test_the_sweep_stops_when_its_time_is_up(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert files.sweep(tmp_path, now=1e12, budget_s=-1.0) == 0
    assert files.sweep(tmp_path, now=1e12) == 1


DAYS_S = 24 * 3600.0


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + ahead_s)


@pytest.mark.parametrize("ahead_s", [8 * DAYS_S, -8 * DAYS_S, 61.0])
def test_the_time_is_that_of_the_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: float) -> None:
    true_s = time.time()
    set_clock(monkeypatch, ahead_s)
    state = files.StateFolder(tmp_path)
    assert state.now() == pytest.approx(true_s, abs=20)
    assert state.ahead_s() == pytest.approx(-ahead_s, abs=20)
    assert names(tmp_path) == []


def test_a_small_difference_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, -30.0)
    assert files.StateFolder(tmp_path).ahead_s() == 0.0


@pytest.mark.parametrize(
    ("ahead_s", "said"), [(8 * DAYS_S, "ahead of"), (-8 * DAYS_S, "behind"), (330.0, "ahead of"), (240.0, None)]
)
def test_a_clock_that_is_off_by_minutes_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ahead_s: float, said: str | None
) -> None:
    set_clock(monkeypatch, ahead_s)
    state = files.StateFolder(tmp_path)
    state.now()
    state.now()
    assert caplog.text.count("the clock of this worker") == (0 if said is None else 1)
    assert said is None or f"minutes {said}" in caplog.text


def test_without_a_folder_the_time_is_that_of_the_worker(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file in the way")
    assert files.StateFolder(tmp_path / "state").now() == pytest.approx(time.time(), abs=20)
