"""Text-to-video: the latents start as noise and nothing but the prompt steers them."""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline

from worker.artifacts import Conditioning
from worker.models import Mode
from worker.modes.base import Sampling, TextPipeline


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
