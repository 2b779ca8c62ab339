"""The sandbox with real children: what they may use, and when they end."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from worker.base.errors import Cancelled
from worker.media import decode_video, inputs, sandbox

BOUNDS = sandbox.Bounds(memory_bytes=500_000_000, cpu_s=20, file_bytes=1000, wall_s=30.0)


def python(body: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", body]


def output(body: str, bounds: sandbox.Bounds = BOUNDS) -> str:
    """What a child that runs `body` prints; it is read a byte at a time."""
    with sandbox.running(python(body), bounds) as child:
        return b"".join(bytes(block) for block in child.blocks(1)).decode()


def test_a_child_has_its_limits_and_nothing_of_its_parents_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGITAL_OCEAN_BUCKET_SECRET_KEY", "secret")
    body = (
        "import os, resource as r; print([r.getrlimit(k)[1] for k in (r.RLIMIT_AS, r.RLIMIT_CPU, r.RLIMIT_FSIZE, "
        "r.RLIMIT_CORE)], sorted(set(os.environ) - {'LC_CTYPE'}))"
    )
    assert output(body).strip() == "[500000000, 20, 1000, 0] []"


def test_a_child_can_take_neither_the_memory_nor_the_disk(tmp_path: Path) -> None:
    assert output("bytearray(300_000_000); print('ok')").strip() == "ok"
    assert output("bytearray(500_000_000); print('ok')") == ""
    file = tmp_path / "file"
    output(f"open({str(file)!r}, 'wb').write(bytes(5000))")
    assert file.stat().st_size == 1000


def test_what_the_decoders_may_use() -> None:
    """33 megapixels of RGB and their decoder fit; a bomb of gigabytes does not, and ffmpeg writes no file at all."""
    assert sandbox.Bounds(1_000_000_000, 30, 12 + 99_000_000, 60.0) == inputs.IMAGE_BOUNDS
    assert sandbox.Bounds(2_000_000_000, 300, 0, 120.0) == decode_video.BOUNDS


def test_blocks_are_whole_and_a_rest_is_dropped() -> None:
    with sandbox.running(python("print('aabbc', end='')"), BOUNDS) as child:
        assert [bytes(block) for block in child.blocks(2)] == [b"aa", b"bb"]
        assert child.ended_well()


@pytest.mark.parametrize("body", ["import sys; sys.exit(3)", "import os; os.kill(os.getpid(), 9)"])
def test_a_child_that_dies_did_not_end_well(body: str) -> None:
    with sandbox.running(python(body), BOUNDS) as child:
        child.wait()
        assert not child.ended_well()


HANGS = python("import time; time.sleep(60)")


@pytest.mark.parametrize("reading", [True, False])
@pytest.mark.parametrize("reason", ["stop", "clock"])
def test_a_child_that_hangs_is_killed(reading: bool, reason: str) -> None:
    stop = threading.Event()
    bounds = replace(BOUNDS, wall_s=0.1) if reason == "clock" else BOUNDS
    if reason == "stop":
        threading.Timer(0.1, stop.set).start()
    expected = Cancelled if reason == "stop" else sandbox.TooSlow
    with pytest.raises(expected), sandbox.running(HANGS, bounds, stop=stop) as child:
        list(child.blocks(1)) if reading else child.wait()
    assert child.process.returncode == -signal.SIGKILL


def _worker(ready: multiprocessing.connection.Connection) -> None:
    with sandbox.running(python("print('x', flush=True); import time; time.sleep(60)"), BOUNDS) as child:
        next(child.blocks(1))
        ready.send(child.process.pid)
        child.wait()


def test_a_child_dies_with_its_worker() -> None:
    ready, sent = multiprocessing.get_context("fork").Pipe(duplex=False)
    worker = multiprocessing.get_context("fork").Process(target=_worker, args=(sent,))
    worker.start()
    child = psutil.Process(ready.recv())
    worker.kill()
    worker.join()
    worker.close()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_a_child_whose_worker_died_before_it_began_does_nothing() -> None:
    """The launcher compares its parent with the one that started it."""
    with sandbox.running(python("print('x')"), BOUNDS) as child:
        launched = list(child.process.args)  # type: ignore[arg-type]
        child.wait()
    place = launched.index(str(os.getpid()))
    launched[place] = "1"
    done = subprocess.run(launched, capture_output=True, check=False, timeout=30)
    assert (done.returncode, done.stdout) == (1, b"")


def test_the_limits_of_the_worker_itself_stay() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    output("print('x')")
    assert resource.getrlimit(resource.RLIMIT_AS) == before
