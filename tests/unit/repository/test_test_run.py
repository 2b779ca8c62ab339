"""A test run that is ended leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
HANGING = """
import subprocess, sys, time
from pathlib import Path

def test_it():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    Path(__file__).with_name("pid").write_text(f"{child.pid} ")
    time.sleep(600)
"""


def test_sigterm_to_a_run_ends_its_children_too(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(HANGING)
    options = ["-q", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    with subprocess.Popen([sys.executable, "-m", "pytest", *options, str(tmp_path / "test_it.py")], cwd=ROOT) as run:
        try:
            deadline = time.monotonic() + 60
            written = tmp_path / "pid"
            while not (written.exists() and written.read_text().endswith(" ")):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            child = psutil.Process(int(written.read_text()))
            run.send_signal(signal.SIGTERM)
            assert run.wait(30) == -signal.SIGTERM
            assert child.wait(10) is None
        finally:
            run.kill()
