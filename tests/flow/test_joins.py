"""A floor under how the segments of a longer video join on the trained demo model; `benchmarks.long` measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.long import joins, loop
from benchmarks.long_jobs import MODELS


@pytest.mark.slow
def test_segments_join_without_a_jump(tmp_path: Path) -> None:
    found = joins(1, 3, [5], tmp_path)["overlap_5"]
    assert found["goes_on"] >= 0.75
    assert found["seam_worst"] <= 3
    assert found["seam_of_latents"] <= 2
    assert found["drift_last_segment"] <= 3


@pytest.mark.slow
def test_the_end_of_a_loop_meets_its_beginning(tmp_path: Path) -> None:
    found = loop(2, 4, tmp_path, MODELS["demo"], turns=(16,))
    assert found["loop_16"]["step_median"] <= 1
    assert found["loop_16"]["step_median"] <= found["open_16"]["step_median"]
