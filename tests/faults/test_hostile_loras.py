"""No header of a LoRA, however it is made, holds the worker: each is applied, or refused as the caller's, at once.

The full run is `python -m benchmarks.hostile_loras --count 10000`; this is a sample of the same generator.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from benchmarks.hostile_loras import LIMIT_S, good_files, mutant, outcome
from tests.kits.lora_kit import load
from tests.kits.slow import slow


@pytest.mark.parametrize("count", [40, *slow(400)])
def test_mutated_headers_are_applied_or_refused_at_once(tmp_path: Path, count: int) -> None:
    components = load(tmp_path / "t2v")
    good = good_files(components)
    assert {outcome(content, components, tmp_path) for content in good} == {"applied"}
    found = set()
    for seed in range(count):
        _, content = mutant(seed, good)
        began = time.process_time()
        found.add(outcome(content, components, tmp_path))
        assert time.process_time() - began < LIMIT_S
    assert found == {"applied", "InputInvalid", "Unsupported"}
