"""The steps of hybrid turbo: the model's own reach the noise of the distilled ones, which are Euler's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from worker.engine.modes import schedules


def hybrid_schedule() -> Any:
    """The 20 steps of the model's own at shift 12 until t = 875, then the two distilled ones."""
    config = dict(schedules.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).config)
    scheduler = schedules.hybrid(config, flow_shift=12.0, boundary_ratio=0.875)
    scheduler.set_timesteps(20)
    scheduler.set_begin_index(0)
    return scheduler


def test_the_last_step_before_the_distilled_ones_reaches_their_noise() -> None:
    """Along a straight path, where every solver is exact, the latents are where the sigmas say."""
    scheduler = hybrid_schedule()
    picture, noise = torch.full((1, 4), 3.0), torch.full((1, 4), -1.0)
    latents = noise.clone()
    sigmas = [float(sigma) for sigma in scheduler.sigmas]
    assert sigmas[-3:] == pytest.approx([5 / 6, 0.625, 0.0], abs=1e-6)
    assert len(sigmas) == len(scheduler.timesteps) + 1
    for timestep, following in zip(scheduler.timesteps, sigmas[1:], strict=True):
        latents = scheduler.step(noise - picture, timestep, latents, return_dict=False)[0]
        torch.testing.assert_close(latents, (1 - following) * picture + following * noise, rtol=1e-4, atol=1e-4)


def test_the_distilled_steps_are_euler_s_and_know_nothing_of_the_steps_before_them() -> None:
    scheduler = hybrid_schedule()
    sigmas, generator = scheduler.sigmas.tolist(), torch.Generator().manual_seed(1)
    latents = torch.randn(1, 4, generator=generator)
    for number, timestep in enumerate(scheduler.timesteps):
        before, velocity = latents, torch.randn(1, 4, generator=generator)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
        if number >= len(scheduler.timesteps) - 2:
            torch.testing.assert_close(latents, before + (sigmas[number + 1] - sigmas[number]) * velocity)
