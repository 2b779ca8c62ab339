"""First-and-last-frame: the video begins with one image and ends with another."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from worker.artifacts import Conditioning
from worker.models import Mode
from worker.modes.base import ImagePipeline, Sampling


class FirstLastFrame:
    name: Mode = "first_last_frame"
    pipeline = ImagePipeline

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        latents: torch.Tensor = pipeline(
            image=conditioning.image, last_image=conditioning.last_image, **sampling.arguments()
        )[0]
        return latents
