"""The step across a join, and the drift of colours, on frames whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from worker.media.seams import Measured, color_drift


def grey(level: int) -> np.ndarray:
    return np.full((4, 6, 3), level, np.uint8)


@pytest.mark.parametrize(("before", "seam"), [(8, 1.0), (4, 3.0), (10, 0.0), (None, None)])
def test_the_seam_is_the_step_across_over_the_median_step_inside(before: int | None, seam: float | None) -> None:
    measured = Measured(None if before is None else grey(before))
    frames = [grey(level) for level in (10, 12, 14, 20)]
    assert [frame[0, 0, 0] for frame in measured.passing(frames)] == [10, 12, 14, 20]
    assert measured.seam == seam


def test_what_stands_still_has_no_seam() -> None:
    measured = Measured(grey(1))
    list(measured.passing([grey(2), grey(2)]))
    assert measured.seam is None


@pytest.mark.parametrize(("level", "lightness"), [(0, 0.0), (255, 100.0), (119, 50.0)])
def test_the_mean_colour_is_in_lab(level: int, lightness: float) -> None:
    measured = Measured(None)
    list(measured.passing([grey(level)]))
    assert measured.mean_lab == pytest.approx((lightness, 0.0, 0.0), abs=0.2)


def test_drift_is_a_distance() -> None:
    assert color_drift((50, 3, 4), (50, 0, 0)) == 5
