"""How the process ends: at SIGTERM while it starts, and when its work is done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANDLER = Path(__file__).resolve().parents[3] / "handler.py"


def test_a_start_ends_at_the_signal(tmp_path: Path) -> None:
    """Ignored, the signal stands for process 1, which would not notice it without a handler."""
    variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "MODEL_PROFILE": "demo"}
    command = [sys.executable, str(HANDLER), "--rp_serve_api", "--rp_api_port", "0"]
    process = subprocess.Popen(
        command, env=variables, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
    )
    try:
        deadline = time.monotonic() + 60
        while _ignores_sigterm(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()


def _ignores_sigterm(pid: int) -> bool:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"].strip(), 16) & 1 << (signal.SIGTERM - 1))


ENDS = """
import atexit, signal, sys, threading, time, weakref
from concurrent.futures import ThreadPoolExecutor
from worker.base import sigterm

class Apart:
    def __del__(self):
        sys.stdout.write("taken apart\\n")

def late(text):
    while signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        time.sleep(0.01)
    signal.raise_signal(signal.SIGTERM)
    sys.stdout.write(text)

def harm(number, frame):
    sys.stdout.write("the loop is gone\\n")

signal.signal(signal.SIGTERM, harm)
kept = Apart()
scratch = type("Folder", (), {})()
weakref.finalize(scratch, sys.stdout.write, "finalised\\n")
atexit.register(sys.stdout.write, "at exit\\n")
threading.Thread(target=late, args=("thread\\n",)).start()
ThreadPoolExecutor(1).submit(late, "pool\\n")
sys.stdout.write("not flushed\\n")
sigterm.end(STATUS)
"""


@pytest.mark.parametrize("status", [0, 1])
def test_the_end_waits_for_threads_and_calls_what_is_registered_and_takes_nothing_apart(status: int) -> None:
    """And a second SIGTERM changes nothing any more."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS.replace("STATUS", str(status))],
        cwd=HANDLER.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, "")
    told = done.stdout.splitlines()
    assert told[0] == "not flushed"
    assert sorted(told[1:3]) == ["pool", "thread"]
    assert sorted(told[3:]) == ["at exit", "finalised"]


def test_an_end_whose_output_nobody_reads_any_more_ends_all_the_same() -> None:
    code = "import sys; from worker.base import sigterm; sys.stdout.write('x'); sys.stdout.close(); sigterm.end(3)"
    done = subprocess.run([sys.executable, "-c", code], cwd=HANDLER.parent, timeout=60, check=False)
    assert done.returncode == 3
