"""Several workers and one spool: each video is stored once, and no worker waits for a dead one."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.kits.spool_kit import JOB, Place, Slow
from worker.base import locks
from worker.base.errors import UploadFailed

FORK = multiprocessing.get_context("fork")


# --- several workers


def test_two_workers_store_a_video_once(place: Place, background: ThreadPoolExecutor) -> None:
    place.keep()
    slow = Slow(place.storage)
    first = background.submit(place.spool.drain, slow)
    assert slow.begun.wait(20)
    place.another_worker().drain(slow)
    slow.go_on.set()
    first.result(30)
    assert len(slow.stored) == 1
    assert place.files == []


def test_a_redelivered_job_waits_for_the_worker_that_is_storing_its_video(
    place: Place, background: ThreadPoolExecutor
) -> None:
    place.keep()
    kept, slow = place.found(), Slow(place.storage)
    draining = background.submit(place.another_worker().drain, slow)
    assert slow.begun.wait(20)
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.upload(kept, slow, wait_s=0.1)
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(UploadFailed, match="another worker is storing"):
        place.upload(kept, slow, stop=stopped, wait_s=60)
    waiting = background.submit(place.upload, kept, slow)
    slow.go_on.set()
    assert waiting.result(30) == place.finished()[0]
    draining.result(30)
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


# --- one drain a process, and nobody beside the worker that stores


def test_a_second_drain_of_the_process_returns_at_once(place: Place, background: ThreadPoolExecutor) -> None:
    for index in (0, 1):
        place.keep(index=index)
    slow = Slow(place.storage)
    first = background.submit(place.spool.drain, slow)
    assert slow.begun.wait(20)
    place.spool.drain(slow)
    assert len(slow.stored) == 1
    slow.go_on.set()
    first.result(30)
    assert place.kept() == []


def test_a_drain_leaves_a_video_that_another_worker_is_storing_itself(place: Place) -> None:
    place.keep()
    with place.journal.storing(JOB, 0, wait_s=0.0):
        place.spool.drain(place.storage)
        assert place.kept() == [0]
    place.spool.drain(place.storage)
    assert place.kept() == []
