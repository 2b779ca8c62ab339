from __future__ import annotations

import errno
import logging
import os
import threading
import time
from pathlib import Path

import httpx2
import pytest

from worker.base import locks
from worker.base.errors import Cancelled, ModelUnavailable
from worker.base.locks import held
from worker.weights.hub.failures import TRANSLATED, is_transient, unavailable


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk of MODEL_CACHE_DIR is full"),
        (errno.EDQUOT, "the quota of the volume of MODEL_CACHE_DIR is used up"),
        (errno.EROFS, "is read-only"),
        (errno.EACCES, "may not write to MODEL_CACHE_DIR"),
        (errno.EPERM, "may not write to MODEL_CACHE_DIR"),
        (errno.ENOSYS, "has no file locks"),
        (errno.EFBIG, "does not take files of this size"),
        (errno.ENOTDIR, "is not a folder"),
        (errno.EIO, "input/output error"),
        (errno.ESTALE, "the volume of MODEL_CACHE_DIR fails (ESTALE)"),
    ],
)
def test_every_failure_of_the_volume_is_one_sentence_without_a_path(number: int, words: str) -> None:
    failure = OSError(number, os.strerror(number), "/volume/models/secret")
    told = unavailable(failure, "org/name", has_token=False)
    assert isinstance(told, ModelUnavailable)
    assert str(told).startswith("org/name: ")
    assert words in str(told)
    assert "/volume" not in str(told)


def test_an_error_without_a_number_is_told_too() -> None:
    assert "the volume of MODEL_CACHE_DIR fails" in str(unavailable(OSError("odd"), "org/name", has_token=False))


def test_a_defect_is_not_taken_for_a_failure_of_the_hub() -> None:
    assert not issubclass(KeyError, TRANSLATED)
    assert not issubclass(Cancelled, TRANSLATED)


def test_what_asking_again_may_help() -> None:
    assert is_transient(httpx2.ConnectError("refused"))
    assert is_transient(httpx2.ReadTimeout("slow"))
    assert not is_transient(httpx2.UnsupportedProtocol("ftp"))
    assert not is_transient(OSError(errno.ENOSPC, "full"))


def test_a_lock_excludes_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "WAIT_LOG_S", 0.05)
    path = tmp_path / "locks" / "a.lock"
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with held(path, doing="testing"):
            order.append("second")

    with caplog.at_level(logging.INFO, logger="worker"):
        with held(path, doing="testing"):
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
            with held(path, doing="testing", stopped=stop.is_set):
                pass
        except Cancelled as failure:
            caught.append(failure)

    with held(path, doing="testing"):
        thread = threading.Thread(target=second)
        thread.start()
        stop.set()
        thread.join(timeout=20)
    assert len(caught) == 1
