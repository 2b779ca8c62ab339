"""`benchmarks/on_gpu`: every stage at a tiny size on the CPU, by the script that runs on the GPU machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
STAGES = "facts,race,job480,attention,decode,pass,linear,turbo480,profile,weights,pinned,fp8,stock480,swap48"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_stage_but_compile_runs_at_a_tiny_size(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TINY": "1",
        "PYTHON": sys.executable,
        "OUT": str(tmp_path / "out"),
        "PARTS": "main",
        "MAIN": STAGES,
        "MAIN_SECONDS": "800",
        "SECONDS_IN_ALL": "850",
        "CUDA_VISIBLE_DEVICES": "",
    }
    script = ["bash", "benchmarks/on_gpu/measure.sh", str(tmp_path / "nothing carried")]
    done = subprocess.run(script, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert not [line for line in lines if line["what"] in ("FAILED", "left out")], done.stdout
    assert [line["stage"] for line in lines if line["what"] == "stage, s"] == STAGES.split(",")
    assert "| job480 | step, s (median; all) |" in done.stdout
