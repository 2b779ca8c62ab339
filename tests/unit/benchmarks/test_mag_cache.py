"""What MagCache's curves leave out, without a model."""

from __future__ import annotations

import pytest

from benchmarks.mag_cache import Curves, gain

STEPS = 10


def curves(*ratios: float) -> Curves:
    """One expert whose steps 1, 2, ... have these ratios, with and without the prompt."""
    found = Curves()
    for kind in ((0, 0), (0, 1)):
        for step, ratio in enumerate(ratios, start=1):
            found.ratios[kind][step].append(ratio)
    return found


def left_out(schedule: dict[tuple[int, int], dict[int, bool]]) -> list[int]:
    assert schedule[0, 0] == schedule[0, 1]
    return [step for step, skip in schedule[0, 0].items() if skip]


def test_errors_add_up_until_a_step_is_computed() -> None:
    """The ratios of the steps behind the last computed one are multiplied: 0.1, then 0.19 more."""
    even = curves(*[0.9] * 9)
    assert left_out(even.schedule(0.05, 4, STEPS)) == []
    assert left_out(even.schedule(0.15, 4, STEPS)) == [1, 3, 5, 7]
    assert left_out(even.schedule(0.30, 4, STEPS)) == [1, 2, 4, 5, 7, 8]


def test_no_more_than_k_in_a_row_and_never_the_ends() -> None:
    flat = curves(*[1.0] * 9)
    assert left_out(flat.schedule(1.0, 2, STEPS)) == [1, 2, 4, 5, 7, 8]
    assert left_out(flat.schedule(1.0, 100, STEPS)) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(("share", "steps_left_out"), [(0.0, 0), (0.2, 2), (0.35, 4)])
def test_the_least_threshold_leaves_out_the_share_or_more(share: float, steps_left_out: int) -> None:
    rising = curves(0.99, 0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91)
    threshold, schedule = rising.least_schedule(share, 100, STEPS)
    assert len(left_out(schedule)) >= steps_left_out
    assert len(left_out(rising.schedule(threshold / 1.05, 100, STEPS))) < max(steps_left_out, 1)


def test_a_gain_is_the_mean_of_the_differences_of_the_same_clips() -> None:
    one = {"each_db": [30.0, 36.0, 33.0], "each_ssim": [0.9, 0.9, 0.9]}
    other = {"each_db": [29.0, 31.0, 33.0], "each_ssim": [0.8, 0.9, 1.0]}
    found = gain(one, other)
    assert (found["db"], found["db_nearer"], found["ssim_nearer"]) == (2.0, 2, 1)
    assert found["db_standard_error"] == pytest.approx((7 / 3) ** 0.5)  # differences 1, 5, 0: a variance of 7, over 3
    assert found["ssim"] == pytest.approx(0.0)
