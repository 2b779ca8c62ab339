"""Locks between threads and processes: who waits, who does not, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import logging
import threading
import time
from pathlib import Path

import pytest

from worker.base import locks
from worker.base.errors import Cancelled


def unsupported(handle: int, how: int) -> None:
    raise OSError(errno.ENOTSUP, "Operation not supported")


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
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locks.locked(tmp_path / "lock", wait_s=0):
        pass


def test_a_lock_excludes_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "locks" / "a.lock"
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with locks.held(path, doing="testing", log_every_s=0.05, poll_s=0.01):
            order.append("second")

    with caplog.at_level(logging.INFO, logger="worker"):
        with locks.held(path, doing="testing"):
            thread = threading.Thread(target=second)
            thread.start()
            entered.wait()
            while len(caplog.records) < 2:
                time.sleep(0.01)
            order.append("first")
        thread.join()
    assert order == ["first", "second"]
    assert caplog.records[0].message == "another worker is testing; waiting for it (0 s so far)"


def test_a_stopped_worker_does_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    stop = threading.Event()
    caught: list[BaseException] = []

    def second() -> None:
        try:
            with locks.held(path, doing="testing", stopped=stop.is_set):
                pass
        except Cancelled as failure:
            caught.append(failure)

    with locks.held(path, doing="testing"):
        thread = threading.Thread(target=second)
        thread.start()
        stop.set()
        thread.join(timeout=20)
    assert len(caught) == 1


def test_a_download_does_without_a_volume_that_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers at once would do harm there."""
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(OSError, match="not supported"), locks.held(tmp_path / "lock", doing="testing"):
        pytest.fail("held without a lock")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_lock_that_fails_otherwise_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def broken(handle: int, how: int) -> None:
        raise OSError(number, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="broken"), locks.locked(tmp_path / "lock", wait_s=0):
        pytest.fail("held without a lock")


def test_a_sole_lock_lets_one_in_at_a_time_and_leaves_no_file(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "sole", 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(10):
            with locks.sole(path, stopped=lambda: False, poll_s=0.001):
                with counting:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with counting:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert list(tmp_path.iterdir()) == []


def test_who_waits_for_a_sole_lock_stops_when_told(tmp_path: Path) -> None:
    with locks.sole(tmp_path / "sole", stopped=lambda: True):
        with pytest.raises(BlockingIOError), locks.sole(tmp_path / "sole", stopped=lambda: True):
            pytest.fail("two held the lock")
        with locks.sole(tmp_path / "other", stopped=lambda: True):
            pass


def test_without_locks_a_sole_lock_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locks.sole(tmp_path / "sole", stopped=lambda: True), locks.sole(tmp_path / "sole", stopped=lambda: True):
        pass
