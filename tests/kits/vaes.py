"""Real VAEs of a tiny size whose frames are lively, their latents, and a record of model offload."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.hooks import CpuOffload, add_hook_to_module
from diffusers import AutoencoderKLWan

from worker.engine import decode

FIVE_B_CHANNELS = 12


def vae_a14b() -> AutoencoderKLWan:
    """The VAE of A14B: 16 channels, 8x spatial."""
    return AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)


def vae_5b() -> AutoencoderKLWan:
    """The VAE of TI2V-5B: residual blocks, patches of 2, 16x spatial."""
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=FIVE_B_CHANNELS,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        latents_mean=[0.1 * channel for channel in range(FIVE_B_CHANNELS)],
        latents_std=[0.5 + 0.1 * channel for channel in range(FIVE_B_CHANNELS)],
    )


BUILDERS = {"a14b": vae_a14b, "5b": vae_5b}


def lively(vae: AutoencoderKLWan) -> AutoencoderKLWan:
    """Scale the output up, so that the frames of an untrained VAE use the range of levels and clip at both ends."""
    torch.nn.init.normal_(vae.decoder.conv_out.weight, std=1.0)
    return vae.eval()


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def vae(request: pytest.FixtureRequest) -> AutoencoderKLWan:
    torch.manual_seed(7)
    return lively(BUILDERS[request.param]())


@pytest.fixture(scope="module")
def a14b() -> AutoencoderKLWan:
    torch.manual_seed(7)
    return lively(vae_a14b())


def latents_of(
    vae: AutoencoderKLWan, *, count: int = 3, height: int = 4, width: int = 6, seed: int = 0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, vae.config.z_dim, count, height, width, generator=generator)


def stacked(vae: AutoencoderKLWan, latents: torch.Tensor, *, tiled: bool = False) -> np.ndarray:
    return np.stack(list(decode.frames(vae, latents, tiled=tiled)))


class RecordingOffload(CpuOffload):  # type: ignore[misc]
    """Model offload as on a GPU; the execution device is the CPU, so the moves are recorded."""

    def __init__(self) -> None:
        super().__init__(execution_device=torch.device("cpu"))
        self.events: list[str] = []

    def init_hook(self, module: torch.nn.Module) -> Any:
        self.events.append("offload")
        return super().init_hook(module)

    def pre_forward(self, module: torch.nn.Module, *args: object, **kwargs: object) -> Any:
        self.events.append("onload")
        return super().pre_forward(module, *args, **kwargs)


def offloaded(vae: AutoencoderKLWan, *, append: bool) -> tuple[AutoencoderKLWan, RecordingOffload]:
    """A copy of the VAE under model offload; `append`: behind a hook that it has already."""
    copied, hook = copy.deepcopy(vae), RecordingOffload()
    if append:
        add_hook_to_module(copied, CpuOffload(execution_device=torch.device("cpu")))
    add_hook_to_module(copied, hook, append=append)
    hook.events.clear()
    return copied, hook
