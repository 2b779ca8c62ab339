"""What each mode gives Diffusers' pipeline: which picture is the first, and from which latents a video begins."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast, get_args

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, UniPCMultistepScheduler
from diffusers.video_processor import VideoProcessor
from PIL import Image

from tests.kits.engine_kit import MODES, PLANNER, demo_source, pixels, render
from worker.engine import Conditioning, Engine, decode
from worker.engine.modes import MODES as SERVED
from worker.engine.modes.base import Sampling
from worker.engine.modes.video_to_video import encoded
from worker.request import Mode
from worker.weights.sources import demo

CHANNELS = 4
CPU = torch.device("cpu")


class Pipeline:
    """In the place of a Wan pipeline: keeps what it is called with."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae
        self.scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        )
        self.called_with: dict[str, Any] = {}
        self._execution_device = CPU
        self.for_estimates = ()

    def __call__(self, **arguments: Any) -> tuple[torch.Tensor]:
        self.called_with = arguments
        return (torch.zeros(1),)


def sampling(**changes: Any) -> Sampling:
    given: dict[str, Any] = {
        "width": 32,
        "height": 32,
        "num_frames": 5,
        "num_inference_steps": 10,
        "guidance_scale": 1.0,
        "guidance_scale_2": None,
        "prompt_embeds": torch.zeros(1, 1, 1),
        "negative_prompt_embeds": None,
        "generator": torch.Generator("cpu").manual_seed(3),
        "strength": 0.5,
        "on_step": lambda *_: True,
    }
    return Sampling(**{**given, **changes})


def clip() -> list[Image.Image]:
    """Five frames of 32 x 32 that differ in place and in time."""
    whole = Image.effect_noise((64, 64), 90).convert("RGB")
    return [whole.crop((n, n, n + 32, n + 32)) for n in range(5)]


def latents_of(vae: AutoencoderKLWan, frames: list[Image.Image]) -> torch.Tensor:
    """As Diffusers prepares pixels and normalises latents: [1, CHANNELS, 2, 4, 4]."""
    raw = vae.encode(VideoProcessor(vae_scale_factor=8).preprocess_video(frames)).latent_dist.mode()
    channels = [
        (raw[:, number] - vae.config.latents_mean[number]) / vae.config.latents_std[number]
        for number in range(CHANNELS)
    ]
    return torch.stack(channels, dim=1)


def test_every_mode_of_the_contract_is_registered() -> None:
    assert set(SERVED) == set(get_args(Mode))


@torch.no_grad()
def test_a_video_is_encoded_as_diffusers_does_and_normalised(vae: AutoencoderKLWan) -> None:
    frames = clip()
    found = encoded(vae, np.stack([np.asarray(frame) for frame in frames]), CPU)
    torch.testing.assert_close(found, latents_of(vae, frames), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("strength", "steps"), [(0.1, 1), (0.5, 5), (1.0, 10)])
def test_a_video_begins_between_its_own_latents_and_the_seeds_noise(
    vae: AutoencoderKLWan, strength: float, steps: int
) -> None:
    frames, pipeline = clip(), Pipeline(vae)
    given = sampling(strength=strength)
    SERVED["video_to_video"].latents(cast(DiffusionPipeline, pipeline), given, Conditioning(video=frames))
    schedule = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    schedule.set_timesteps(10)
    sigma = float(schedule.sigmas[10 - steps])
    source = latents_of(vae, frames)
    noise = torch.randn(source.shape, generator=torch.Generator("cpu").manual_seed(3))
    wanted = (1 - sigma) * source + sigma * noise
    torch.testing.assert_close(pipeline.called_with["latents"], wanted, rtol=1e-4, atol=1e-4)
    pipeline.scheduler.set_timesteps(10)
    assert pipeline.scheduler.timesteps.tolist() == schedule.timesteps[10 - steps :].tolist()


def test_the_first_and_the_last_picture_keep_their_places(vae: AutoencoderKLWan) -> None:
    pictures = Conditioning(image=Image.new("RGB", (32, 32), "red"), last_image=Image.new("RGB", (32, 32), "blue"))
    for mode, wanted in (
        ("first_last_frame", {"image": pictures.image, "last_image": pictures.last_image}),
        ("image_to_video", {"image": pictures.image}),
        ("text_to_video", {}),
    ):
        pipeline = Pipeline(vae)
        SERVED[mode].latents(cast(DiffusionPipeline, pipeline), sampling(), pictures)  # type: ignore[index]
        found = {name: pipeline.called_with[name] for name in ("image", "last_image") if name in pipeline.called_with}
        assert found == wanted, mode


def test_the_lower_the_strength_the_nearer_the_video() -> None:
    """Measured to the source's own latents, decoded: what strength 0 would give."""
    engine = Engine(demo_source(), demo.catalogue(), PLANNER)
    video, conditioning = MODES["video"]
    assert conditioning.video is not None
    made = []
    for strength in (0.1, 0.5, 1.0):
        made.append(pixels(render(engine, replace(video, num_inference_steps=10, strength=strength), conditioning)))
    vae = engine.models["t2v"].components.shared.vae
    with torch.no_grad():
        latents = encoded(vae, np.stack([np.asarray(frame) for frame in conditioning.video]), CPU)
    exact = np.stack(list(decode.frames(vae, latents))).astype(float)
    near, middle, far = (float(np.abs(frames - exact).mean()) for frames in made)
    assert near < middle < far
