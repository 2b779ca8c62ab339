"""Image-to-video that begins with several known frames: Wan's conditioning of one picture, continued over more.

Diffusers' pipeline knows the first frame, and perhaps the last. Its condition is a video, blank where nothing is known,
and a mask that says where; so 5 or 9 frames are 2 or 3 latent frames of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import get_module_execution_device

if TYPE_CHECKING:
    from PIL.Image import Image


def condition(
    vae: AutoencoderKLWan,
    frames: Sequence[Image],
    last: torch.Tensor | None,
    num_frames: int,
    device: Any,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """Mask and latents of a video whose first frames are `frames`, 4k + 1 of them: [1, 4 + z_dim, T, h, w].

    last: its last frame, [1, 3, H, W] in -1..1, or None.
    """
    known = pixels_of(frames)
    pixels = known.new_zeros(1, 3, num_frames, *known.shape[3:])
    pixels[:, :, : len(frames)] = known
    if last is not None:
        pixels[:, :, -1] = last.to(pixels)
    latents = latents_of(vae, pixels, device, dtype)
    stride = vae.config.scale_factor_temporal
    mask = torch.zeros(1, stride, *latents.shape[2:], dtype=latents.dtype, device=latents.device)
    mask[:, :, : (len(frames) - 1) // stride + 1] = 1
    if last is not None:
        mask[:, -1, -1] = 1
    return torch.cat([mask, latents], dim=1)


def pixels_of(frames: Sequence[Image]) -> torch.Tensor:
    """float32 [1, 3, F, H, W] in -1..1, on the CPU."""
    return torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(3, 0, 1, 2)[None] / 127.5 - 1


def latents_of(vae: AutoencoderKLWan, pixels: torch.Tensor, device: Any, dtype: torch.dtype | None) -> torch.Tensor:
    """Normalised latents [1, z_dim, T, h, w] of pixels [1, 3, 4 (T - 1) + 1, H, W] in -1..1."""
    pixels = pixels.to(get_module_execution_device(vae), vae.dtype)
    latents = vae.encode(pixels).latent_dist.mode().to(device, dtype)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape).to(latents)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape).to(latents)
    normalised: torch.Tensor = (latents - mean) * inverse_std
    return normalised
