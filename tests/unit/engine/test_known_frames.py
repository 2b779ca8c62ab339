"""The condition of several known frames: Diffusers' own where it is one, and marked as known where there are more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline
from PIL import Image

from worker.engine.modes.known_frames import condition

CPU = torch.device("cpu")


def frames(count: int) -> list[Image.Image]:
    drawn = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return [Image.fromarray(each) for each in drawn]


def tensor(frame: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None].float() / 127.5 - 1


@pytest.mark.parametrize("last", [False, True])
@torch.no_grad()
def test_of_one_frame_it_is_that_of_diffusers(vae: AutoencoderKLWan, last: bool) -> None:
    parts = ("tokenizer", "text_encoder", "scheduler", "image_processor", "image_encoder", "transformer")
    pipeline = WanImageToVideoPipeline(vae=vae, **dict.fromkeys(parts))
    first, end = frames(2)
    ends = tensor(end) if last else None
    generator = torch.Generator().manual_seed(1)
    _, theirs = pipeline.prepare_latents(
        *(tensor(first), 1, 4, 32, 32, 9, torch.float32, CPU, generator), last_image=ends
    )
    assert torch.equal(condition(vae, [first], ends, 9, CPU, torch.float32), theirs)


@pytest.mark.parametrize(("count", "latent_frames"), [(1, 1), (5, 2), (9, 3)])
@torch.no_grad()
def test_the_mask_covers_what_is_known(vae: AutoencoderKLWan, count: int, latent_frames: int) -> None:
    mask = condition(vae, frames(count), None, 17, CPU, torch.float32)[0, :4]
    assert mask[:, :latent_frames].eq(1).all()
    assert mask[:, latent_frames:].eq(0).all()
