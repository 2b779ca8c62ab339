"""Each expert is trained on the noise at which inference uses it, and on no other."""

from __future__ import annotations

import pytest

from worker.request import ModelSpec
from worker.request.catalogue import I2V_A14B, T2V_A14B, TI2V_5B
from worker.request.training import Expert
from worker.training import timesteps


@pytest.mark.parametrize(("spec", "percent"), [(T2V_A14B, 63), (I2V_A14B, 36)])
def test_the_share_of_the_high_noise_expert_is_that_of_the_shifted_schedule(spec: ModelSpec, percent: int) -> None:
    low, high = timesteps.share(spec, "high")
    assert round(100 * (high - low)) == percent
    assert timesteps.share(spec, "low") == (0.0, low)


@pytest.mark.parametrize("spec", [T2V_A14B, I2V_A14B])
@pytest.mark.parametrize("expert", ["high", "low"])
def test_every_draw_is_on_the_experts_own_side(spec: ModelSpec, expert: Expert) -> None:
    boundary = spec.boundary_ratio
    assert boundary is not None
    drawn = [timesteps.sigma(spec, expert, timesteps.along(7, step)) for step in range(2_000)]
    assert all((sigma >= boundary - 1e-9) == (expert == "high") for sigma in drawn)
    low, high = (boundary, 1.0) if expert == "high" else (0.0, boundary)
    assert min(drawn) < low + 0.02
    assert max(drawn) > high - 0.02


def test_draws_are_as_dense_as_the_steps_of_inference() -> None:
    """Ten draws in a row cover the expert's part; in the schedule's own measure they are even."""
    for first in (0, 500):
        along = sorted(timesteps.along(3, step) for step in range(first, first + 10))
        gaps = [after - before for before, after in zip([along[-1] - 1, *along], along, strict=False)]
        assert max(gaps) < 0.2
    assert timesteps.along(3, 0) != timesteps.along(4, 0)


def test_a_model_with_one_expert_is_trained_on_all_noise() -> None:
    assert timesteps.share(TI2V_5B, None) == (0.0, 1.0)


def test_random_numbers_follow_from_the_seed_and_the_place() -> None:
    first = timesteps.generator(1, "step", 2).initial_seed()
    assert first == timesteps.generator(1, "step", 2).initial_seed()
    assert (
        len({first, *(timesteps.generator(*place).initial_seed() for place in ((1, "step", 3), (2, "step", 2)))}) == 3
    )
