"""SVI's condition: the anchor and what is handed over as they are, exact zeros behind, the anchor alone as known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

from tests.kits.engine_kit import PICTURE, PLANNER, demo_source, image_request, render
from worker.engine import Conditioning, Engine
from worker.engine.modes.svi import condition
from worker.weights.sources import demo

CPU = torch.device("cpu")


def picture(seed: int = 1) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8))


def pixels(*frames: Image.Image) -> torch.Tensor:
    """[1, 3, F, H, W] in -1..1."""
    return torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]).permute(3, 0, 1, 2)[None] / 127.5 - 1


def normalised(vae: AutoencoderKLWan, frames: torch.Tensor) -> torch.Tensor:
    raw = vae.encode(frames).latent_dist.mode()
    return torch.stack(
        [(raw[:, n] - vae.config.latents_mean[n]) / vae.config.latents_std[n] for n in range(vae.config.z_dim)], dim=1
    )


@pytest.mark.parametrize("handed_over", [0, 1, 2])
@torch.no_grad()
def test_anchor_then_what_is_handed_over_then_zeros(vae: AutoencoderKLWan, handed_over: int) -> None:
    tail = np.random.default_rng(2).normal(size=(1, 4, handed_over, 4, 4)).astype(np.float32)
    anchor = pixels(picture())[:, :, 0]
    found = condition(vae, anchor, tail if handed_over else None, 5, CPU, torch.float32)

    assert (found.shape, found.dtype) == ((1, 8, 5, 4, 4), torch.float32)
    mask, latents = found[:, :4], found[:, 4:]
    assert mask[:, :, 0].eq(1).all()
    assert mask[:, :, 1:].eq(0).all()
    torch.testing.assert_close(latents[:, :, :1], normalised(vae, anchor[:, :, None]))
    assert np.array_equal(latents[:, :, 1 : 1 + handed_over].numpy(), tail)
    assert latents[:, :, 1 + handed_over :].eq(0).all()


@torch.no_grad()
def test_of_a_video_that_was_not_made_here_the_last_frames_are_encoded(vae: AutoencoderKLWan) -> None:
    shown = [picture(seed) for seed in range(5)]
    found = condition(vae, pixels(picture(9))[:, :, 0], shown, 3, CPU, torch.float32)[:, 4:]
    torch.testing.assert_close(found[:, :, 1:2], normalised(vae, pixels(*shown))[:, :, 1:])
    assert found[:, :, 2].eq(0).all()


def test_a_clip_hands_over_its_last_latents_and_the_next_one_is_made_of_them() -> None:
    engine = Engine(demo_source(), demo.catalogue(), PLANNER)
    request = image_request(num_frames=9)
    by_svi = Conditioning(image=PICTURE.image, svi=True)
    first = render(engine, request, by_svi)
    tail = first.tail()

    assert tail.shape == (1, 16, 1, 8, 8)
    assert np.array_equal(tail, first.denoised.latents[:, :, 2:].numpy())
    # Each of the three kinds of condition makes another clip of the same noise, and the plain one comes back.
    kinds = (PICTURE, by_svi, Conditioning(image=PICTURE.image, svi=True, tail=tail), PICTURE)
    made = [render(engine, request, each).denoised.latents for each in kinds]
    assert not any(torch.equal(made[n], made[n + 1]) for n in range(3))
    assert torch.equal(made[0], made[3])
