"""The real handler under RunPod's own local API, driven by a real HTTP client: the contract's example."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks import Webhook

from tests.flow.conftest import Receiver, probe
from tests.kits.client_cases import SECRET
from tests.kits.worker_process import become_handler, forked

START_WITHIN_S = 400.0
pytestmark = pytest.mark.timeout(900)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Starts handler.py with RunPod's API in a process of its own; answers its URL."""
    processes: list[ForkServerProcess] = []

    def start(**environment: str) -> str:
        port = free_port()
        variables = {**os.environ, **environment}
        arguments = ("--rp_serve_api", "--rp_api_port", str(port))
        target = (variables, tmp_path, tmp_path / "handler.log", False, arguments)
        processes.append(forked().Process(target=become_handler, args=target))
        processes[-1].start()
        url = f"http://localhost:{port}"
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline:
            assert processes[-1].is_alive(), (tmp_path / "handler.log").read_text()
            try:
                requests.get(url, timeout=5)
            except requests.ConnectionError:
                time.sleep(0.2)
            else:
                return url
        raise AssertionError((tmp_path / "handler.log").read_text())

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # its heartbeat too
        process.kill()
        process.join()


def test_the_contracts_example_through_runpods_local_api(
    serve: Callable[..., str], receiver: Receiver, picture_url: str, tmp_path: Path
) -> None:
    url = serve(PRIVATE_URL_ALLOWLIST="localhost", WEBHOOK_SECRET=SECRET)
    payload: dict[str, Any] = {
        "job_id": "abc-123",
        "webhook_url": receiver.url,
        "job_request_params": [
            {
                "prompt": "The woman walks confidently through a modern city at golden hour",
                "reference_image_url": picture_url,
                "height": 256,
                "width": 448,
                "num_frames": 5,
                "num_inference_steps": 2,
                "guidance_scale": 5.0,
                "fps": 16,
                "camera_motion": "dolly_in",
                "enhance_prompt": True,
            },
            {"prompt": "A calm sea", "height": 256, "width": 256, "num_frames": 17, "num_inference_steps": 1},
        ],
    }
    job = requests.post(f"{url}/run", json={"input": payload}, timeout=100).json()
    answer = requests.post(f"{url}/status/{job['id']}", timeout=400).json()
    assert answer["status"] == "COMPLETED"
    first, second = answer["output"]["videos"]
    assert probe(first["video_url"]) == ("h264", "yuv420p", 16.0, 448, 256, 5)
    assert probe(second["video_url"]) == ("h264", "yuv420p", 16.0, 256, 256, 17)
    assert [event["message"] for event in receiver.of_type("completed")] == ["Video Generated!"] * 2
    told = [event["progress"] for event in receiver.of_type("progress")]
    assert told
    assert told == sorted(told)
    for body, headers in zip(receiver.bodies, receiver.headers, strict=True):
        Webhook(SECRET).verify(body, headers)
    log = (tmp_path / "handler.log").read_text()
    assert "golden hour" not in log
    assert "job=abc-123" in log


@pytest.mark.slow
def test_a_bad_payload_fails_the_job_with_a_json_string(serve: Callable[..., str]) -> None:
    url = serve()
    answer = requests.post(
        f"{url}/runsync", json={"input": {"prompt": "a", "num_infrence_steps": 3}}, timeout=200
    ).json()
    assert answer["status"] == "FAILED"
    assert '"path": "num_infrence_steps"' in answer["error"]
    assert "did you mean num_inference_steps?" in answer["error"]
