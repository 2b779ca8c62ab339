"""`benchmarks.gpu`: every row at a tiny size for real, and what it says where it cannot measure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_rates, gpu_videos
from benchmarks.gpu_models import SCALES
from benchmarks.gpu_rates import Rates
from benchmarks.gpu_rows import ROWS, Measured
from worker.base.settings import Settings
from worker.request.plan import Gpu, Planner

ROOT = Path(__file__).resolve().parents[3]
ALWAYS_HERE = (
    "exact",
    "native",
    "_native_flash",
    "quantized",
    "cache_balanced",
    "cache_fast",
    "turbo",
    "turbo_lora",
    "decode",
    "encode",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)


def results(folder: Path) -> dict[str, Any]:
    (file,) = folder.glob("gpu-tiny-*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_row_but_compile_runs_at_a_tiny_size_and_is_written(tmp_path: Path) -> None:
    names = [row.name for row in ROWS if row.name != "compile"]
    done = run("--tiny", "--steps", "3", "--repeats", "1", "--rows", ",".join(names), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = results(tmp_path)
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == names
    for name in ALWAYS_HERE:
        row = rows[name]
        assert row["reason"] is None, name
        assert row["video_s"] > 0
        assert row["stock"]["video_s"] > 0
        assert row["stock_ratio"] == pytest.approx(row["stock"]["video_s"] / row["video_s"])
        assert re.search(rf"^\| {name}\b", done.stdout, re.MULTILINE)
    for name in set(names) - set(ALWAYS_HERE):  # on a CPU no attention runs but torch's own
        assert rows[name]["reason"]
        assert f"{name}: {rows[name]['reason']}" in done.stdout
    assert len(rows["exact"]["steps_s"]) == len(rows["exact"]["stock"]["steps_s"]) == 6
    assert rows["exact"]["extrapolated"] == 3
    assert rows["quantized"]["parameters"]["quantized_compute"] == "fp8"
    assert rows["turbo"]["parameters"]["distilled_weights"] == "fused"
    assert len(rows["turbo"]["steps_s"]) == 4
    assert set(rows["turbo"]["timings"]) >= {"text", "generate", "encode", "upload", "total"}
    assert all(rate > 0 for name, rate in found["rates_flop_s"].items() if name != "named")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_compiled_row_runs_compiled(tmp_path: Path) -> None:
    done = run("--tiny", "--steps", "3", "--no-stock", "--rows", "compile", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = results(tmp_path)["rows"]
    assert row["reason"] is None
    assert row["parameters"]["torch_compile"] is True
    assert row["stock"] is None


@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        (None, f"torch {torch.__version__} is a build without CUDA: install"),
        ("13.0", "torch finds no CUDA GPU: look at"),
    ],
)
def test_without_a_gpu_nothing_is_measured_and_what_is_missing_is_said(
    cuda: str | None, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"nothing was measured: {words}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("gigabytes", "capability", "fits"), [(2, (9, 0), False), (140, (7, 5), False), (140, (9, 0), True)]
)
def test_a_gpu_that_cannot_serve_is_said_before_anything_is_loaded(
    gigabytes: int, capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Planner(Gpu("a GPU", gigabytes * 10**9, capability), Settings(), 120 * 10**9)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "planner_for", lambda _: small)
    lacking = gpu.missing(SCALES["480p"])
    assert lacking is None if fits else str(lacking).startswith("the GPU does not serve it: ")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "exact,turbo2"], "no row is called turbo2; there are exact, sage,"),
        (["--steps", "2"], "--steps: at least 3"),
        (["--repeats", "0"], "--repeats: at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu.main([*arguments, "--tiny"])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_row_that_raises_is_told_and_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Measured:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu_videos, "video", fail)
    monkeypatch.setattr(gpu_rates, "measure", lambda *_: Rates(1e12, None, 1e12, {"exact": "bf16", "vae": "TF32"}))
    monkeypatch.setattr(gpu_videos, "stage", lambda row, *_, **__: Measured(row.name, video_s=1.0))
    assert gpu.main(["--tiny", "--no-stock", "--rows", "exact,decode", "--output", str(tmp_path)]) == 1
    assert "exact: failed: RuntimeError: no such kernel" in capsys.readouterr().out
    assert [row["video_s"] for row in results(tmp_path)["rows"]] == [None, 1.0]
