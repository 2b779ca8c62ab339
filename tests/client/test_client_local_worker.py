"""The client against the real handler.py under RunPod's local API, on the demo model."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kits.loopback import wait_until
from videogen_client import CancelRefused, JobNotFound, JobRefused, Timing

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAYLOAD = {"prompt": "A calm sea", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1, "seed": 3}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("worker")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = f"http://localhost:{port}"
    command = [sys.executable, str(ROOT / "handler.py"), "--rp_serve_api", "--rp_api_port", str(port)]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=log, stderr=subprocess.STDOUT
        )

    def is_up() -> bool:
        assert process.poll() is None, (home / "log").read_text()
        try:
            urllib.request.urlopen(found, timeout=5).close()
        except (urllib.error.URLError, TimeoutError):
            return False
        return True

    try:
        wait_until(is_up, 400)
        yield found
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def local(connect: Callable[..., Any], url: str) -> Any:
    return connect(base_url=url, timing=Timing())


def test_a_video_is_made_and_fetched(local: Any, tmp_path: Path) -> None:
    """The second time from the journal, as when the answer was lost."""
    payload = {**PAYLOAD, "job_id": f"order-{type(local).__name__}"}
    (video,) = local.generate(payload, timeout_s=400)["videos"]
    target = local.download(video, tmp_path / "clip.mp4")
    assert target.stat().st_size == video["size_bytes"]
    (again,) = local.generate(payload, timeout_s=400)["videos"]
    assert (again["sha256"], again["seed"], again["timings"]) == (video["sha256"], 3, video["timings"])


def test_what_the_worker_refuses_is_typed(local: Any) -> None:
    with pytest.raises(JobRefused) as caught:
        local.generate({"prompt": "a", "fps": 61, "num_infrence_steps": 3}, timeout_s=200)
    assert (caught.value.code, caught.value.retryable) == ("invalid_request", False)
    assert "did you mean num_inference_steps?" in caught.value.message
    with pytest.raises(JobNotFound):
        local.result("job-1", timeout_s=100)
    with pytest.raises(CancelRefused):
        local.cancel("job-1")
