"""The further training on a GPU, at a tiny length on the CPU: what it writes, and that no part takes others with it."""

from __future__ import annotations

import json
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training import train_further
from training.further import LORAS, SIDES, WEIGHTS, Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """One step of each part on clips of 32 x 32."""
    folder = tmp_path / "work"
    folder.mkdir()
    return Job(folder, tmp_path, time.time(), 600, clips=6, chunk=4, size=32, batch=2, taught=1, steps=1)


@pytest.mark.slow
def test_a_run_makes_both_experts_and_all_loras_from_the_shipped_ones(job: Job) -> None:
    for part in ("draw", *SIDES, *LORAS):
        assert train_further._part(job, part) == 0
    seen: set[str] = set()
    train_further._pack(job, seen)
    made = job.out / "made"
    for name in ("experts.tar", "loras.tar"):
        with tarfile.open(job.out / name) as archive:
            archive.extractall(made, filter="data")
    shipped = {path.relative_to(WEIGHTS) for path in WEIGHTS.rglob("*.safetensors")}
    for path in (path for path in shipped if path.parts[0] in ("experts", "loras")):
        before, after = load_file(WEIGHTS / path), load_file(made / path)
        assert before.keys() == after.keys()
        assert all(
            after[name].shape == value.shape and after[name].dtype == value.dtype for name, value in before.items()
        )
        assert any(not torch.equal(after[name], value) for name, value in before.items())
    for side in SIDES:
        config = Path("experts") / side / "config.json"
        assert json.loads((made / config).read_text()).keys() == json.loads((WEIGHTS / config).read_text()).keys()


def test_a_part_that_fails_is_in_the_log(job: Job) -> None:
    late = Job(**{**{name: getattr(job, name) for name in Job.__dataclass_fields__}, "seconds": 0.0})
    assert train_further._part(late, "high") == 1
    (line,) = [each for each in (job.out / "log.jsonl").read_text().splitlines() if "failed" in each]
    assert "no clip was drawn in time" in json.loads(line)["error"]
