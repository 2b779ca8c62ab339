"""How `python handler.py` starts, and when it refuses to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(600)


def start(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "handler.py"), *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.mark.slow
def test_the_platform_without_a_gpu_is_refused(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # also on a machine that has one
    done = start(tmp_path, RUNPOD_WEBHOOK_GET_JOB="http://127.0.0.1:9/job-take/$ID", **hidden)
    assert done.returncode == 1
    assert "the worker cannot start: no CUDA GPU is visible" in done.stderr
    assert "demo" not in done.stderr


def test_every_unreadable_value_is_told_at_once(tmp_path: Path) -> None:
    done = start(
        tmp_path, MAX_FRAMES="many", PRELOAD="i2v,t3v", DIGITAL_OCEAN_BUCKET_NAME="videos", QUANTIZATION="int4"
    )
    assert done.returncode == 1
    for variable in ("MAX_FRAMES", "PRELOAD", "QUANTIZATION", "DIGITAL_OCEAN_ENDPOINT_URL"):
        assert variable in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_a_gpu_the_demo_model_is_said_in_one_line_and_runs_test_input(tmp_path: Path) -> None:
    (tmp_path / "test_input.json").write_bytes((ROOT / "test_input.json").read_bytes())
    done = start(tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("serving the small built-in demo model") == 1
    for index, mode in enumerate(("text_to_video", "image_to_video")):
        assert f"made by   demo, {mode}" in done.stdout
        assert list((tmp_path / "outputs").rglob(f"{index}.mp4"))


@pytest.mark.slow
def test_a_failed_local_run_exits_with_1_and_says_why(tmp_path: Path) -> None:
    done = start(tmp_path, "--test_input", '{"input": {"prompt": "a", "fps": 61}}', MODEL_PROFILE="demo")
    assert done.returncode == 1
    assert "invalid_request: fps: must be 1 to 60, not 61" in done.stdout


@pytest.mark.slow  # as tests/flow/test_cli_generate.py has it for the command line
def test_ctrl_c_is_answered_at_once_and_ends_a_local_run(tmp_path: Path) -> None:
    video = {"prompt": "a", "height": 256, "width": 256, "num_frames": 81, "num_inference_steps": 100}
    with subprocess.Popen(
        [sys.executable, str(ROOT / "handler.py"), "--test_input", json.dumps({"input": video})],
        cwd=tmp_path,
        env={**os.environ, "MODEL_PROFILE": "demo"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            assert any("video 0: text_to_video" in line for line in lines)
            process.send_signal(signal.SIGINT)
            assert any(line == "stopping: the current step is finished first\n" for line in lines)
            out, _ = process.communicate(timeout=100)
        finally:
            process.kill()
    assert process.returncode == 1
    assert "video 0 failed: cancelled: " in out
