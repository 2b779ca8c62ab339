"""Previews change nothing of a video, show the scheduler's own estimate, and can be the end of it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kits.engine_kit import PICTURE, Quiet, demo_source, image_request, pixels, request
from tests.kits.videos import given
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine
from worker.engine.device import planner_for
from worker.engine.modes import schedules
from worker.engine.preview import Preview
from worker.engine.preview_map import fit
from worker.request import VideoRequest
from worker.request.values import Previews
from worker.weights.sources import demo

CONFIG = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "num_train_timesteps": 1000}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Its maps are fitted in no time, and coarse."""
    settings = Settings(state_dir=tmp_path_factory.mktemp("state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.engine.preview_map.fit", partial(fit, clips=4, side=32))
        yield Engine(demo_source(), demo.catalogue(), planner_for(settings))


def made(engine: Engine, video: VideoRequest) -> tuple[list[Preview], list[float], Any]:
    watcher = Quiet()
    rendering = engine.generate(given(engine, video, PICTURE), watcher=watcher, stop=Stop())
    return watcher.previews, watcher.generated, rendering


@pytest.mark.parametrize(
    ("at", "of", "steps"),
    [
        ((0.15, 0.35, 0.6), 50, (8, 18, 30)),
        ((0.15, 0.35, 0.6), 4, (1, 2)),
        ((0.001, 0.999), 20, (1, 20)),
        ((0.5,), 1, (1,)),
    ],
)
def test_after_which_steps_previews_are_made(at: tuple[float, ...], of: int, steps: tuple[int, ...]) -> None:
    assert Previews("strip", at).steps(of) == steps


@pytest.mark.parametrize("fields", [{}, {"quality_preset": "turbo"}])
def test_the_frames_have_the_same_bits_with_previews(engine: Engine, fields: dict[str, Any]) -> None:
    plain = request(num_inference_steps=4, **fields)
    looks, _, with_previews = made(engine, replace(plain, preview=Previews("strip")))
    assert [look.step for look in looks] == [1, 2]
    none, _, without = made(engine, plain)
    assert none == []
    assert np.array_equal(pixels(with_previews), pixels(without))


def test_the_estimate_after_the_last_step_is_the_video(engine: Engine) -> None:
    (look,), _, rendering = made(engine, request(num_inference_steps=3, preview="strip", preview_at=[0.99]))
    assert torch.allclose(look.latents, rendering.denoised.latents[0].cpu(), atol=1e-4)


def test_a_preview_is_a_webp_of_the_kind_that_was_asked_for(engine: Engine) -> None:
    (look,), _, _ = made(engine, request(preview="animated", preview_at=[0.5], fps=16))
    for kind, frames in (("animated", 2), ("strip", 1)):
        picture = Image.open(io.BytesIO(replace(look, kind=kind).webp(64_000)))
        assert (picture.format, getattr(picture, "n_frames", 1)) == ("WEBP", frames)


@pytest.mark.parametrize("video", [request, image_request])
def test_preview_only_ends_after_the_last_preview(engine: Engine, video: Any) -> None:
    looks, generated, _ = made(engine, video(num_inference_steps=10, preview_only=True, preview_at=[0.1, 0.3]))
    assert [look.step for look in looks] == [1, 3]
    assert generated == [0.0, 0.1, 0.2, 0.3]


def test_the_first_frame_of_the_5b_model_is_the_picture(engine: Engine) -> None:
    """Its latents there are the picture's own, at whatever step."""
    looks, _, rendering = made(
        engine, image_request(model="5b", num_inference_steps=3, preview="strip", preview_at=[0.3, 0.9])
    )
    for look in looks:
        assert torch.allclose(look.latents[:, 0], rendering.denoised.latents[0, :, 0].cpu(), atol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        schedules.UniPCMultistepScheduler(**CONFIG, flow_shift=3.0),
        schedules.scheduler(),
        schedules.hybrid(CONFIG, flow_shift=3.0, boundary_ratio=0.875),
    ],
    ids=["UniPC", "distilled", "hybrid"],
)
def test_every_scheduler_has_the_estimate_of_the_step_that_it_just_made(scheduler: Any) -> None:
    scheduler.set_timesteps(4, device="cpu")
    sample = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for number, timestep in enumerate(scheduler.timesteps):
        output = torch.sin(sample + number)
        sigma = float(scheduler.sigmas[number])
        following = scheduler.step(output, timestep, sample, return_dict=False)[0]
        assert torch.allclose(scheduler.model_outputs[-1], sample - sigma * output, atol=1e-6)
        sample = following


def test_a_map_that_cannot_be_fitted_is_a_warning(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such VAE")

    monkeypatch.setattr("worker.engine.preview_map.ColourMaps.of", fails)
    looks, _, rendering = made(engine, request(preview="strip"))
    assert (looks, len(rendering.warnings)) == ([], 1)
    assert "could not fit its map of colours" in rendering.warnings[0]
