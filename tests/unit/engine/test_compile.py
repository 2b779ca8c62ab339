"""Regional compilation: what is refused, what is kept for the next start, and that it changes no picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kits.engine_kit import PLANNER, demo_source, pixels, render, request
from worker.base.settings import Settings
from worker.engine import Engine
from worker.engine.device import planner_for
from worker.engine.techniques import compile as compiling
from worker.request.plan import MemoryPlan
from worker.weights.sources import demo

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


def planned(residency: str) -> MemoryPlan:
    return MemoryPlan("bf16", residency, "offloaded", False, 0, 0, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("residency", ["resident", "swap"])
def test_weights_that_lie_still_can_be_compiled(residency: str) -> None:
    assert compiling.refusal(planned(residency), CPU) is None


@pytest.mark.parametrize("residency", ["group_offload", "sequential"])
def test_weights_that_are_streamed_cannot(residency: str) -> None:
    assert residency in str(compiling.refusal(planned(residency), CPU))


def test_a_missing_compiler_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "WITH_COMPILER=1" in str(compiling.refusal(planned("resident"), CPU))


# In processes of their own: what a process compiled, and what it found compiled, is counted for the whole process.
COMPILES = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from worker.engine.techniques.compile import CompilerCache
cache = CompilerCache(Path(sys.argv[1]), torch.device("cpu"))
print(cache.load())
print(float(torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(8)).sum()))
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
cache.keep()
print(cache.path.stat().st_size > 0)
"""


def in_a_new_process(volume: Path, inductor: Path) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", COMPILES, str(volume)],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "TORCHINDUCTOR_CACHE_DIR": str(inductor), "HOME": str(inductor)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    return found.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_next_start_finds_what_this_one_compiled(tmp_path: Path) -> None:
    volume = tmp_path / "compiled"
    assert in_a_new_process(volume, tmp_path / "first") == ["False", "16.0", "0", "1", "True"]
    assert in_a_new_process(volume, tmp_path / "second") == ["True", "16.0", "1", "0", "True"]
    (kept,) = volume.iterdir()
    assert torch.__version__ in kept.name


def test_a_damaged_file_is_compiled_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = compiling.CompilerCache(tmp_path, CPU)
    cache.path.write_bytes(b"no such thing")
    with caplog.at_level("WARNING"):
        assert cache.load() is False
    assert "compiled again" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_blocks_step_aside_for_the_step_cache(tmp_path: Path) -> None:
    source = demo_source(2)
    settings = Settings(enable_torch_compile=True, model_cache_dir=tmp_path / "models")
    compiled = Engine(source, demo.catalogue(), planner_for(settings))
    plain = Engine(source, demo.catalogue(), PLANNER)
    assert render(compiled, request()).parameters["torch_compile"] is True
    assert list((tmp_path / "models" / compiling.FOLDER).iterdir())
    video = request(step_cache="balanced", num_inference_steps=4)
    cached = render(compiled, video)
    assert cached.parameters["torch_compile"] is False
    assert np.array_equal(pixels(cached), pixels(render(plain, video)))


def test_streamed_weights_run_uncompiled_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from worker.engine.techniques.base import Setup

    technique = compiling.Compile(Setup(Settings(enable_torch_compile=True), CPU, torch.float32))
    with caplog.at_level("WARNING"):
        technique.prepare(torch.nn.Linear(1, 1), planned("group_offload"))
    assert "torch.compile is off" in caplog.text
