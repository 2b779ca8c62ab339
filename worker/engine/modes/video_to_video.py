"""Video-to-video: a video is noised to the sigma at which `strength` begins, and denoised from there by both experts.

Diffusers' own `WanVideoToVideoPipeline` drops the second expert and the boundary. Here the text-to-video pipeline
starts from the noised latents of the video, under a schedule whose first steps are left out: `strength` 0.8 of 50 steps
runs the last 40. As in Diffusers, strength is a share of the steps, not of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, SchedulerMixin, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor

from worker.engine.modes.base import Conditioning, Sampling, TextPipeline
from worker.engine.modes.schedules import DistilledScheduler, HybridScheduler
from worker.request import Mode


class VideoToVideo:
    name: Mode = "video_to_video"
    pipeline = TextPipeline

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        if conditioning.video is None:
            raise ValueError("video-to-video needs the frames of a video")
        device = pipeline._execution_device
        source = encoded(pipeline.vae, np.stack([np.asarray(frame) for frame in conditioning.video]), device)
        scheduler = begun_late(pipeline.scheduler, sampling.strength)
        scheduler.set_timesteps(sampling.num_inference_steps, device=device)
        sigma = scheduler.sigmas[0].to(device)
        noise = randn_tensor(source.shape, generator=sampling.generator, device=device, dtype=torch.float32)
        pipeline.scheduler = scheduler
        latents: torch.Tensor = pipeline(latents=(1 - sigma) * source + sigma * noise, **sampling.arguments())[0]
        return latents


def encoded(vae: AutoencoderKLWan, frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """Normalised latents, float32 [1, z_dim, T, h, w], of frames uint8 [F, H, W, 3] with F = 4k + 1."""
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0).to(device, vae.dtype) / 127.5 - 1
    latents = vae.encode(pixels).latent_dist.mode().float()
    mean = torch.tensor(vae.config.latents_mean, device=device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=device).view(1, -1, 1, 1, 1)
    normalised: torch.Tensor = (latents - mean) / std
    return normalised


class _BegunLate:
    """Leaves out the first steps of a schedule. At least one step remains."""

    strength = 1.0
    timesteps: torch.Tensor
    sigmas: torch.Tensor

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None, **options: Any) -> None:
        super().set_timesteps(num_inference_steps, device=device, **options)  # type: ignore[misc]
        steps = max(int(len(self.timesteps) * self.strength), 1)
        left_out = len(self.timesteps) - steps
        self.timesteps = self.timesteps[left_out:]
        self.sigmas = self.sigmas[left_out:]
        self.num_inference_steps = steps


class _UniPCBegunLate(_BegunLate, UniPCMultistepScheduler):  # type: ignore[misc]
    pass


class _DistilledBegunLate(_BegunLate, DistilledScheduler):  # type: ignore[misc]
    pass


class _HybridBegunLate(_BegunLate, HybridScheduler):
    pass


_LATE: Mapping[type[SchedulerMixin], type[SchedulerMixin]] = {
    UniPCMultistepScheduler: _UniPCBegunLate,
    DistilledScheduler: _DistilledBegunLate,
    HybridScheduler: _HybridBegunLate,
}


def begun_late(scheduler: SchedulerMixin, strength: float) -> SchedulerMixin:
    """A scheduler like `scheduler` that runs only the last `strength` (0 to 1) of its steps."""
    late = _LATE[type(scheduler)].from_config(scheduler.config)
    late.strength = strength
    if isinstance(scheduler, HybridScheduler):
        late.boundary_ratio = scheduler.boundary_ratio
    return late
