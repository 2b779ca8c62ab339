"""SIGTERM while the worker starts: as process 1 it would not be noticed without a handler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HANDLER = Path(__file__).resolve().parents[2] / "handler.py"


def test_a_start_ends_at_the_signal(tmp_path: Path) -> None:
    """Ignored, the signal stands for process 1, for which its default action is not taken."""
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
