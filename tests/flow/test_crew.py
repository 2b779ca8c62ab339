"""Several processes on one video: two on the CPU, which talk by gloo, against one by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from tests.flow import crew_frames
from tests.kits.worker_process import forked
from worker.engine.distributed import CrewLost, follower
from worker.engine.distributed.leader import Leader

ROOT = Path(__file__).parents[2]
CREW = {"GPUS": "2", "MODEL_PROFILE": "demo", "PRELOAD": "none"}
pytestmark = pytest.mark.timeout(600)


def followers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def script(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a file in a process of its own: a crew is made once in the life of a worker, and torch keeps traces of it."""
    variables = {**os.environ, **CREW, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(path)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_two_processes_make_the_frames_of_one(tmp_path: Path) -> None:
    saved, said = tmp_path / "frames.npz", tmp_path / "said.json"
    process = forked().Process(target=crew_frames.make, args=(saved, said, {**os.environ, **CREW}))
    process.start()
    process.join()
    assert process.exitcode == 0
    made = np.load(saved)
    for name in ("text", "image", "another seed", "after a stop"):
        shared, alone = (made[f"{name}/{by}"].astype(int) for by in (0, 1))
        assert np.abs(shared - alone).max() <= 1, name
        assert alone.std() > 1
    assert np.abs(made["text/1"].astype(int) - made["another seed/1"]).max() > 1
    report = json.loads(said.read_text())
    assert (report["gpu"], report["stopped"], report["children"]) == ("2 x cpu", True, 0)
    assert (report["parameters"]["context_parallel"], report["parameters"]["step_cache"]) == (2, "off")
    assert "several GPUs" in report["warnings"][0]


@pytest.mark.slow
def test_a_process_that_dies_fails_the_job_and_has_the_worker_restarted() -> None:
    found = script(Path(__file__).with_name("crew_dies.py"))
    assert found.returncode == 0, found.stderr
    for answer in json.loads(found.stdout):  # of the job that was under way, and of the next one
        assert answer["status"] == "failed"
        assert answer["videos"][0]["error"]["code"] == "internal"
        assert answer["refresh_worker"] is True


def refuses(*_arguments: object) -> None:
    raise RuntimeError("no such device")


@pytest.mark.slow
def test_a_process_that_cannot_begin_is_told() -> None:
    with pytest.raises(CrewLost, match="not all of 2 processes"):
        Leader.start(follower.serve, 2, torch.device("cpu"), refuses)
    assert not followers()


@pytest.mark.slow
def test_a_follower_does_not_outlive_its_lead(tmp_path: Path) -> None:
    """A lead that is killed can end nothing any more."""
    lead = tmp_path / "lead.py"
    lead.write_text(
        "import os, psutil, signal\n"
        "from worker import start\n"
        "from worker.base import settings\n"
        "if __name__ == '__main__':\n"
        "    worker = start.build_worker(settings.load())\n"
        "    print(*[each.pid for each in psutil.Process().children(recursive=True)], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = script(lead)
    assert found.returncode == -signal.SIGKILL, found.stderr
    pids = [int(pid) for pid in found.stdout.split()]
    assert pids
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and any(map(psutil.pid_exists, pids)):
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
