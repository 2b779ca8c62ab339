"""Stable Video Infinity (SVI 2.0 Pro): the condition of a clip that is one of several.

Beside the noise are normalised latents: that of the anchor, which is one picture for all clips; the last of the clip
before, as they were made; and zeros. The mask says known at the anchor alone. What a clip after the first draws at the
handed-over places, and in the one frame before them, is what the clip before has shown already. Plain image-to-video
has the latents of grey where nothing is known: with those the method's LoRAs flicker, and without its LoRAs nothing
here works. Source: arXiv 2510.09212, and the 2.0 Pro notes of its authors (vita-epfl/Stable-Video-Infinity).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from worker.engine.modes.known_frames import latents_of, pixels_of

if TYPE_CHECKING:
    from PIL.Image import Image


def condition(
    vae: AutoencoderKLWan,
    anchor: torch.Tensor,
    before: np.ndarray | Sequence[Image] | None,
    latent_frames: int,
    device: Any,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """Mask and latents [1, 4 + z_dim, latent_frames, h, w].

    anchor: a picture, [1, 3, H, W] in -1..1. before: the last latents of the clip before, [1, z_dim, k, h, w], or the
    last 4k + 1 frames of a video that was not made here, or None for the first clip.
    """
    known = latents_of(vae, anchor[:, :, None], device, dtype)
    latents = known.new_zeros(*known.shape[:2], latent_frames, *known.shape[3:])
    latents[:, :, :1] = known
    if before is not None:
        if isinstance(before, np.ndarray):
            handed_over = torch.from_numpy(before)
        else:
            handed_over = latents_of(vae, pixels_of(before), device, dtype)[:, :, 1:]
        latents[:, :, 1 : 1 + handed_over.shape[2]] = handed_over.to(latents)
    mask = torch.zeros_like(latents[:, :1]).repeat(1, vae.config.scale_factor_temporal, 1, 1, 1)
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)
