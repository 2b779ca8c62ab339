"""Image-to-video: the reference image is the first frame."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from worker.artifacts import Conditioning
from worker.models import Mode
from worker.modes.base import ImagePipeline, Sampling


class ImageToVideo:
    name: Mode = "image_to_video"
    pipeline = ImagePipeline

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        latents: torch.Tensor = pipeline(image=conditioning.image, **sampling.arguments())[0]
        return latents
