"""Several processes on one video: two on the CPU, which talk by gloo, against one by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from tests.kits.videos import given
from worker import start
from worker.base import settings
from worker.base.errors import Cancelled
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.device import Planner
from worker.engine.distributed import CrewLost, follower
from worker.engine.distributed.leader import Lead
from worker.jobs.services import Services
from worker.request import VideoRequest
from worker.request.parse import parse
from worker.weights.sources import demo

ROOT = Path(__file__).parents[2]
PICTURE = Image.linear_gradient("L").resize((80, 64)).convert("RGB")


class Watcher:
    """Calls `at_step` when a step is done."""

    def __init__(self, at_step: Any = lambda: None) -> None:
        self._at_step = at_step

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None:
        if fraction > 0:
            self._at_step()


def request(**fields: Any) -> VideoRequest:
    """80 x 64 and 9 frames: 60 tokens, more than two processes need to share unevenly sized blocks."""
    payload = {"prompt": "a cat", "seed": 3, "num_frames": 9, "num_inference_steps": 3, **fields}
    return replace(parse(payload, default_job_id="j").videos[0], width=80, height=64)


def frames(engine: Engine, video: VideoRequest, watcher: Watcher | None = None, stop: Stop | None = None) -> np.ndarray:
    rendering = engine.generate(
        given(engine, video, Conditioning(image=PICTURE)), watcher=watcher or Watcher(), stop=stop or Stop()
    )
    return np.stack(list(rendering.frames()))


@pytest.fixture
def crewed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setenv("GPUS", "2")
    monkeypatch.setenv("MODEL_PROFILE", "demo")
    monkeypatch.setenv("PRELOAD", "none")
    worker = start.build_worker(settings.load())
    yield worker
    worker.engine._work._crew.disband()
    dist.destroy_process_group()
    assert not followers()


def followers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_two_processes_make_the_frames_of_one(crewed: Services) -> None:
    engine = Engine(demo.DemoSource(heads=2), demo.catalogue(), Planner.here(settings.Settings(gpus=1)))
    for video in (request(), request(reference_image_url="https://example.com/a.png"), request(seed=4)):
        shared, alone = frames(crewed.engine, video), frames(engine, video)
        assert np.abs(shared.astype(int) - alone.astype(int)).max() <= 1
        assert alone.std() > 1
    assert crewed.engine.gpu == "2 x cpu"

    stop = Stop()
    with pytest.raises(Cancelled):
        frames(crewed.engine, request(num_inference_steps=9), Watcher(lambda: stop.request(Cancelled())), stop)
    after = frames(crewed.engine, request())
    assert np.abs(after.astype(int) - frames(engine, request()).astype(int)).max() <= 1

    video = given(crewed.engine, request(step_cache="fast"))
    rendering = crewed.engine.generate(video, watcher=Watcher(), stop=Stop())
    assert rendering.parameters["context_parallel"] == 2
    assert rendering.parameters["step_cache"] == "off"
    assert "several GPUs" in rendering.warnings[0]


def script(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "GPUS": "2", "MODEL_PROFILE": "demo", "PRELOAD": "none", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(path)], env=variables | environment, capture_output=True, text=True, timeout=200
    )


def test_a_process_that_dies_fails_the_job_and_has_the_worker_restarted() -> None:
    found = script(Path(__file__).with_name("crew_dies.py"))
    assert found.returncode == 0, found.stderr
    for answer in json.loads(found.stdout):  # of the job that was under way, and of the next one
        assert answer["status"] == "failed"
        assert answer["videos"][0]["error"]["code"] == "internal"
        assert answer["refresh_worker"] is True


def refuses(*_arguments: object) -> None:
    raise RuntimeError("no such device")


def test_a_process_that_cannot_begin_is_told() -> None:
    with pytest.raises(CrewLost, match="not all of 2 processes"):
        Lead.start(follower.serve, 2, torch.device("cpu"), refuses)
    assert not followers()


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
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(map(psutil.pid_exists, pids)):
        time.sleep(0.1)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
