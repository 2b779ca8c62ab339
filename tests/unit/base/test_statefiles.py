from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import stat
from pathlib import Path

import pytest

from worker.base import files, locks


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


def test_a_lock_excludes_a_second_holder_until_it_is_let_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with locks.locked(lock, wait_s=1), pytest.raises(TimeoutError), locks.locked(lock, wait_s=0.05):
        pytest.fail("two held the lock")
    with locks.locked(lock, wait_s=0):
        pass


def test_a_claim_excludes_another_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"content")
    with locks.claimed(path) as content:
        assert content == b"content"
        with pytest.raises(BlockingIOError), locks.claimed(path):
            pytest.fail("two held the claim")
    with locks.claimed(path):
        pass
    path.unlink()
    with pytest.raises(FileNotFoundError), locks.claimed(path):
        pytest.fail("claimed what is gone")


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_claim_on_a_file_that_changed_before_the_lock_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "one"
    path.write_bytes(b"old")
    real = fcntl.flock

    def late(handle: int, how: int) -> None:
        path.unlink()
        if change == "replaced":
            path.write_bytes(b"new")
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    expected = FileNotFoundError if change == "removed" else BlockingIOError
    with pytest.raises(expected), locks.claimed(path):
        pytest.fail("claimed a file that had changed")


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, how: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locks.locked(tmp_path / "lock", wait_s=0):
        pass


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
