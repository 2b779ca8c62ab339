"""SageAttention through whole jobs: a package by that name, found by its version, that computes what the test says.

In a process of its own, because Diffusers looks for the package when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.timeout(900)
# The signature that Diffusers calls; the six functions that it imports.
PACKAGE = """
import os
import torch
from torch.nn.functional import scaled_dot_product_attention

def sageattn(q, k, v, tensor_layout="NHD", is_causal=False, sm_scale=None, return_lse=False):
    assert tensor_layout == "NHD"
    result = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    broken = {"good": False, "nan": True, "nan beyond the probe": q.shape[1] < 1024}[os.environ["SAGE_IS"]]
    print("sage", q.shape[1], flush=True)
    return result * float("nan") if broken else result

sageattn_varlen = sageattn_qk_int8_pv_fp8_cuda = sageattn_qk_int8_pv_fp8_cuda_sm90 = sageattn
sageattn_qk_int8_pv_fp16_cuda = sageattn_qk_int8_pv_fp16_triton = sageattn
"""
SCRIPT = """
import asyncio, json, sys
from worker import jobs, start
from worker.base import log, settings
log.configure(level="INFO", layout="text", secrets=())
made = start.build_worker(settings.load())
for number, payload in enumerate(json.loads(sys.argv[1])):
    answer = asyncio.run(jobs.run({"id": f"job-{number}", "input": payload}, made, lambda _: None))
    print("answer", json.dumps(answer), flush=True)
"""
REQUEST = {"prompt": "a cat", "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 2, "seed": 1}


def run_jobs(
    home: Path, version: str, sage_is: str, jobs: int = 1, **environment: str
) -> tuple[list[Any], list[int], str]:
    """The videos of as many jobs of one worker, how often sage was called until each was answered, and the log."""
    packages = home / "packages"
    (packages / f"sageattention-{version}.dist-info").mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: sageattention\nVersion: {version}\n"
    (packages / f"sageattention-{version}.dist-info" / "METADATA").write_text(metadata)
    (packages / "sageattention.py").write_text(PACKAGE)
    variables = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(home),
        "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}",
        "MODEL_PROFILE": "demo",
        "PRELOAD": "none",
        "STATE_DIR": str(home / "state"),
        "OUTPUT_DIR": str(home / "outputs"),
        "SAGE_IS": sage_is,
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps([REQUEST] * jobs)],
        cwd=home,
        env=variables,
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    lines = done.stdout.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("answer ")]
    videos = [json.loads(lines[end].removeprefix("answer "))["videos"][0] for end in ends]
    return videos, [sum(line.startswith("sage ") for line in lines[:end]) for end in ends], done.stderr


@pytest.fixture(scope="module")
def native_sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the video that exact attention makes, which ENABLE_SAGE_ATTENTION=false asks for."""
    home = tmp_path_factory.mktemp("native")
    (video,), calls, log = run_jobs(home, "2.2.0", "good", ENABLE_SAGE_ATTENTION="false")
    assert (video["parameters"]["attention_backend"], calls) == ("native", [0])
    assert "ENABLE_SAGE_ATTENTION is false" in log
    return str(video["sha256"])


@pytest.mark.slow  # tests/unit/engine/test_attention_engine.py has a backend that serves in this process
def test_sage_serves_self_attention_and_is_named(tmp_path: Path) -> None:
    (video,), (calls,), log = run_jobs(tmp_path, "2.2.0", "good")
    assert video["parameters"]["attention_backend"] == "sage"
    assert calls > 1
    assert (calls - 1) % (2 * 2) == 0  # the probe; then every block, in two steps with and without the prompt
    assert "attention backend sage for self-attention, native for the rest" in log


@pytest.mark.slow
def test_a_broken_build_is_found_by_the_probe(tmp_path: Path, native_sha256: str) -> None:
    (video,), calls, log = run_jobs(tmp_path, "2.2.0", "nan")
    assert (video["parameters"]["attention_backend"], calls) == ("native", [1])
    assert video["sha256"] == native_sha256
    assert not any("demo model" not in line for line in video["warnings"])
    assert "sage: its result is off by nan%" in log


@pytest.mark.slow
def test_nan_in_a_job_is_made_good_and_sage_given_up(tmp_path: Path, native_sha256: str) -> None:
    (first, second), calls, log = run_jobs(tmp_path, "2.2.0", "nan beyond the probe", jobs=2)
    assert [video["status"] for video in (first, second)] == ["completed", "completed"]
    assert {video["sha256"] for video in (first, second)} == {native_sha256}
    assert {video["parameters"]["attention_backend"] for video in (first, second)} == {"_native_flash"}
    assert [line for line in first["warnings"] if "made again with _native_flash attention" in line]
    assert not any("demo model" not in line for line in second["warnings"])
    assert 1 < calls[0] == calls[1]  # the second job asks sage for nothing
    assert "made again with _native_flash attention" in log
