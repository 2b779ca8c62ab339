"""A test run that is ended by SIGTERM leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.kits.slow import slow

ROOT = Path(__file__).parents[3]
HANGING = """
import subprocess, sys, time

def test_it():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    open("pid", "w").write(str(child.pid))
    time.sleep(600)
"""


@pytest.mark.parametrize("workers", ["0", *slow("1")])
def test_sigterm_ends_what_the_tests_have_started(tmp_path: Path, workers: str) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_hanging.py").write_text(HANGING)
    command = [sys.executable, "-m", "pytest", "-p", "tests.kits.no_orphans", "-n", workers]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(ROOT)
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as run:
        while not (text := _read(tmp_path / "pid")):
            assert run.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(text))
        run.send_signal(signal.SIGTERM)
        assert run.wait() == -signal.SIGTERM
    deadline = time.monotonic() + 30  # killed, but the kernel may not have come to it yet
    with suppress(psutil.NoSuchProcess):  # nobody may be there to collect what is left of it
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
