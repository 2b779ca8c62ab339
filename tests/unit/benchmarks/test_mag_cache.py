"""At which limit MagCache is compared with the first block, and what a gain is; without a model."""

from __future__ import annotations

import math

import pytest

from benchmarks.mag_cache import gain, least_limit, left_out
from worker.engine.techniques.magcache import Curve, Curves

STEPS = 10


def rising(steps: range) -> Curve:
    """Lengths that change more from step to step."""
    return Curve(
        timesteps=tuple(1000.0 - 100 * step for step in steps),
        logs=tuple(math.log(1 - step**2 / 200) for step in steps),
    )


HIGH, LOW = rising(range(4)), rising(range(4, STEPS))
CURVES = Curves(experts=((HIGH, HIGH), (LOW, LOW)))


def test_each_expert_computes_its_first_step_and_a_run_its_first_and_last() -> None:
    """Of 10 steps are left out, at most, 1 to 3 of the first expert and 5 to 8 of the other, by both passes."""
    assert left_out(CURVES, math.inf, STEPS) == 2 * (3 + 4)
    assert left_out(CURVES, 0.0, STEPS) == 0


@pytest.mark.parametrize(("share", "at_least"), [(0.0, 0), (0.2, 4), (0.35, 7), (0.7, 14)])
def test_the_least_limit_leaves_out_the_share_or_more(share: float, at_least: int) -> None:
    limit = least_limit(CURVES, share, STEPS)
    assert left_out(CURVES, limit, STEPS) >= at_least
    assert left_out(CURVES, limit / 1.05, STEPS) < max(at_least, 1)


def test_a_share_that_no_limit_reaches_gets_the_largest() -> None:
    assert least_limit(CURVES, 0.9, STEPS) == 100


def test_a_gain_is_the_mean_of_the_differences_of_the_same_clips() -> None:
    one = {"each_db": [30.0, 36.0, 33.0], "each_ssim": [0.9, 0.9, 0.9]}
    other = {"each_db": [29.0, 31.0, 33.0], "each_ssim": [0.8, 0.9, 1.0]}
    found = gain(one, other)
    assert (found["db"], found["db_nearer"], found["ssim_nearer"]) == (2.0, 2, 1)
    assert found["db_standard_error"] == pytest.approx((7 / 3) ** 0.5)  # differences 1, 5, 0: a variance of 7, over 3
    assert found["ssim"] == pytest.approx(0.0)
