"""The modes that are one call of a pipeline: from text, from an image, and between two images."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from worker.engine.modes.base import Conditioning, ImagePipeline, Sampling, TextPipeline
from worker.request import Mode


class FirstLastFrame:
    name: Mode = "first_last_frame"
    pipeline = ImagePipeline

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        pipeline.given = conditioning
        latents: torch.Tensor = pipeline(
            image=conditioning.image, last_image=conditioning.last_image, **sampling.arguments(pipeline.for_estimates)
        )[0]
        return latents


class ImageToVideo:
    name: Mode = "image_to_video"
    pipeline = ImagePipeline

    def latents(self, pipeline: DiffusionPipeline, sampling: Sampling, conditioning: Conditioning) -> torch.Tensor:
        pipeline.given = conditioning
        latents: torch.Tensor = pipeline(image=conditioning.image, **sampling.arguments(pipeline.for_estimates))[0]
        return latents


class TextToVideo:
    name: Mode = "text_to_video"
    pipeline = TextPipeline

    def latents(
        self,
        pipeline: DiffusionPipeline,
        sampling: Sampling,
        conditioning: Conditioning,  # noqa: ARG002 - text stands alone
    ) -> torch.Tensor:
        latents: torch.Tensor = pipeline(**sampling.arguments())[0]
        return latents
