"""Regional compilation: what is refused, what is kept for the next start, and that it changes no picture."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kits.videos import given
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine, Rendering
from worker.engine.device import Planner
from worker.engine.techniques import compile as compiling
from worker.request import VideoRequest
from worker.request.parse import parse
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
        timeout=200,
        check=True,
    )
    return found.stdout.split()


@pytest.mark.timeout(480)
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
    assert "compiled anew" in caplog.text


class Quiet:
    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...


def render(engine: Engine, video: VideoRequest) -> Rendering:
    return engine.generate(given(engine, video), watcher=Quiet(), stop=Stop())


def request(**fields: Any) -> VideoRequest:
    payload = {"prompt": "a cat", "seed": 3, "num_frames": 5, "num_inference_steps": 4, **fields}
    return replace(parse(payload, default_job_id="j").videos[0], width=64, height=64)


@pytest.fixture
def sources() -> Iterator[demo.DemoSource]:
    source = demo.DemoSource(blocks=2)
    yield source
    source.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_blocks_make_the_same_video_and_step_aside_for_the_step_cache(
    sources: demo.DemoSource, tmp_path: Path
) -> None:
    settings = Settings(enable_torch_compile=True, model_cache_dir=tmp_path / "models")
    compiled = Engine(sources, demo.catalogue(), Planner.here(settings))
    plain = Engine(sources, demo.catalogue(), Planner.here(Settings()))
    made, want = render(compiled, request()), render(plain, request())
    assert made.parameters["torch_compile"] is True
    assert want.parameters["torch_compile"] is False
    assert np.abs(np.stack(list(made.frames())).astype(int) - np.stack(list(want.frames()))).max() <= 1
    assert list((tmp_path / "models" / compiling.FOLDER).iterdir())
    cached = render(compiled, request(step_cache="balanced"))
    assert cached.parameters["torch_compile"] is False
    want = render(plain, request(step_cache="balanced"))
    assert np.array_equal(np.stack(list(cached.frames())), np.stack(list(want.frames())))


def test_streamed_weights_run_uncompiled_and_the_log_says_so(
    sources: demo.DemoSource, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    from worker.engine.techniques.base import Setup

    technique = compiling.Compile(Setup(Settings(enable_torch_compile=True), CPU, torch.float32))
    with caplog.at_level("WARNING"):
        technique.prepare(torch.nn.Linear(1, 1), planned("group_offload"))
    assert "torch.compile is off" in caplog.text
