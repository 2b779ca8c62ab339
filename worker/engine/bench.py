"""Single parts of a model, for work that is no video: each is loaded when it is asked for, and its caller drops it.

What a part computes here it computes by the code that inference uses.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from transformers import AutoTokenizer

from worker.base.stop import Stop
from worker.engine import embeddings
from worker.engine.models import components, precision, skeletons
from worker.engine.models.pool import ModelSource
from worker.engine.models.skeletons import Change, Place, Skeleton
from worker.engine.modes.base import ImagePipeline, TextPipeline
from worker.engine.modes.video_to_video import encoded
from worker.request import ModelSpec
from worker.weights.tensors import reading

Embed = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Clips:
    """Encodes clips with the VAE. `frames` are uint8 [F, H, W, 3], F = 4k + 1."""

    vae: AutoencoderKLWan
    spec: ModelSpec
    device: torch.device

    def latents(self, frames: np.ndarray) -> torch.Tensor:
        """Normalised latents, float32 [1, z_dim, T, h, w] on the host."""
        return encoded(self.vae, frames, self.device).cpu()

    def condition(self, frames: np.ndarray) -> torch.Tensor | None:
        """What image-to-video puts beside the noise for the first frame, float32 [1, 4 + z_dim, T, h, w] on the host.

        None for a model that also makes videos of text alone: it is trained as that.
        """
        if "text_to_video" in self.spec.modes:
            return None
        count, height, width, _ = frames.shape
        pipeline = ImagePipeline(image_processor=None, image_encoder=None, **_parts(self.spec, vae=self.vae))
        picture = pipeline.video_processor.preprocess(Image.fromarray(np.asarray(frames[0])), height, width)
        condition: torch.Tensor = pipeline.prepare_latents(
            picture.to(self.device, torch.float32),
            1,
            *(self.vae.config.z_dim, height, width, count, torch.float32, self.device),
            None,  # no generator: the noise is not used
            torch.zeros(1),
            None,
        )[1]
        return condition.cpu()


class Bench:
    """The parts of `spec` on `device`. Every method raises ModelUnavailable, and the reason of `stop`.

    `release` returns the memory of what nobody refers to any more.
    """

    def __init__(
        self, source: ModelSource, spec: ModelSpec, device: torch.device, dtype: torch.dtype, stop: Stop
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype
        self._stop = stop
        self._source = source

    def embedder(self) -> Embed:
        """What embeds a caption: [tokens, text_dim] on the host, in the experts' dtype, without padding."""
        folder = self._folder()
        encoder = skeletons.text_encoder(folder / "text_encoder", self.dtype)
        self._fill(encoder)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        pipeline = TextPipeline(**{**_parts(self.spec), "tokenizer": tokenizer, "text_encoder": encoder.module})

        def embed(caption: str) -> torch.Tensor:
            self._stop.check()
            whole: torch.Tensor = pipeline.encode_prompt(
                caption,
                do_classifier_free_guidance=False,
                max_sequence_length=embeddings.MAX_TOKENS,
                device=self.device,
                dtype=self.dtype,
            )[0]
            return whole[0, : len(tokenizer(caption).input_ids)].cpu().clone()

        return embed

    def clips(self, *, tiled: bool) -> Clips:
        skeleton = skeletons.vae(self._folder() / "vae")
        self._fill(skeleton)
        vae = components.channels_last(skeleton.module)
        if tiled:
            vae.enable_tiling()
        return Clips(vae, self.spec, self.device)

    def expert(self, number: int, *, fp8: bool) -> WanTransformer3DModel:
        """The high-noise expert (0) or the low-noise one (1); fp8: the blocks' linear weights are stored in 8 bits."""
        folder = self._folder() / ("transformer", "transformer_2")[number]
        skeleton = skeletons.expert(folder, self.dtype)
        change = Change(self.device, lambda block: precision.replace_linears(block, "fp8", "cast")) if fp8 else None
        self._fill(skeleton, change)
        return skeleton.module

    def check(self) -> None:
        """Raise the reason of the stop, where there is one."""
        self._stop.check()

    def release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _folder(self) -> Path:
        return self._source.folder(self.spec, self._stop.event, "bf16")

    def _fill(self, skeleton: Skeleton[Any], change: Change | None = None) -> None:
        skeleton.fill(Place(self.device), reading.read, self._stop.check, lambda _: None, change)


def _parts(spec: ModelSpec, **parts: object) -> dict[str, Any]:
    """Arguments of a pipeline of which only `parts` are used."""
    names = ("tokenizer", "text_encoder", "vae", "scheduler", "transformer", "transformer_2")
    settings = {"boundary_ratio": spec.boundary_ratio, "expand_timesteps": spec.boundary_ratio is None}
    return {**dict.fromkeys(names), **settings, **parts}
