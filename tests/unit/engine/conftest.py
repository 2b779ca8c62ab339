"""What tests of several conditions share."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKLWan


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    """Its latents have a mean and a deviation of their own in each channel: a grey frame is no zeros in them."""
    torch.manual_seed(7)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.5, -0.25, 1.0, 0.125],
        latents_std=[2.0, 0.5, 1.5, 4.0],
    ).eval()
