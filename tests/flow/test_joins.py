"""A floor under how the segments of a longer video join on the trained demo model; `benchmarks.long` measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.long import joins


@pytest.mark.slow
def test_segments_join_without_a_jump(tmp_path: Path) -> None:
    found = joins(1, 3, [5], tmp_path)["overlap_5"]
    assert found["goes_on"] >= 0.75
    assert found["seam_worst"] <= 3
    assert found["seam_of_latents"] <= 2
    assert found["drift_last_segment"] <= 3
