"""The small built-in model: the real Wan 2.2 classes at a tiny size, written as Diffusers folders on the spot.

A demo folder has the layout of `Wan-AI/Wan2.2-*-Diffusers`, so everything after this module (loading, sampling,
decoding) is the same as with the real weights. The weights are the trained ones of
`worker.weights.sources.demo_trained`, or random ones, drawn from a fixed seed: then the clip is moving colour, and the
same on every machine of a kind. Nothing is downloaded; a folder is made in well under a second.
"""

from __future__ import annotations

import string
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from worker.base.scratch import ScratchFolder
from worker.request import CATALOGUE, ModelSpec
from worker.request.catalogue import DEMO_EXTENT, as_demo, with_distilled_fused
from worker.weights.sources import demo_trained

_SEED = 22
_TEXT_DIM = 32
# A VAE that works on 2 x 2 patches of pixels (as the 5B model's does) costs a quarter of one that does not; with two
# further halvings it keeps the A14B's stride of 8 in space and 4 in time, and its 16 channels.
_VAE_A14B: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 16,
    "dim_mult": [1, 1, 1],
    "temperal_downsample": [True, True],
    "scale_factor_spatial": 8,
}
_VAE_5B: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 48,
    "dim_mult": [1, 1, 1, 1],
    "temperal_downsample": [False, True, True],
    "scale_factor_spatial": 16,
}


def catalogue(*, trained: bool = False, weights: Path = demo_trained.WEIGHTS) -> tuple[ModelSpec, ...]:
    """Every model of the catalogue, saying that it is the demo.

    Random weights serve any size, and 4 steps as well as 50. Trained ones are good for one size, and those of `turbo`
    are models of their own; every other request is left to random ones beside them.
    """
    plain = tuple(replace(as_demo(spec), extent=None) for spec in CATALOGUE)
    own = [spec for spec in plain if trained and demo_trained.has(spec, weights)]
    fused = [with_distilled_fused(spec) for spec in own if demo_trained.has_distilled(spec, weights)]
    limited = [replace(spec, turbo=spec.fused, extent=DEMO_EXTENT) for spec in (*own, *fused)]
    return (*(replace(spec, variant="any") if spec in own else spec for spec in plain), *limited)


class DemoSource:
    """Makes a model's folder when it is first asked for; the folders go with the source, or when it is closed.

    A model with an extent gets the trained weights in `weights`, any other one tiny random ones. `blocks` and attention
    `heads` are those of each random expert; what works across them needs more than one.
    """

    def __init__(
        self,
        *,
        blocks: int = 1,
        heads: int = 1,
        weights: Path = demo_trained.WEIGHTS,
    ) -> None:
        self._blocks = blocks
        self._heads = heads
        self._weights = weights
        self._lock = threading.Lock()
        scratch = ScratchFolder("demo")  # in use while this process lives: `scratch.sweep` of a neighbour leaves it
        self._home = scratch.path
        self._finalizer = weakref.finalize(self, scratch.close)

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: str) -> Path:  # noqa: ARG002 - made at once
        """A Diffusers-format folder of the tiny model for `spec`."""
        with self._lock:
            folder = self._home / spec.key
            if not folder.exists():
                if spec.extent is not None:
                    demo_trained.assemble(spec, folder, self._weights)
                else:
                    build(spec, folder, blocks=self._blocks, heads=self._heads)
            return folder

    def close(self) -> None:
        self._finalizer()


def build(spec: ModelSpec, folder: Path, *, blocks: int = 1, heads: int = 1) -> None:
    """Write the tiny twin of `spec` to `folder` in Diffusers' format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        tokenizer = _tokenizer()
        vae = _vae(spec)
        # Before the experts: the A14B models share it, as they do the VAE, whichever of them is loaded first.
        text_encoder = _text_encoder(len(tokenizer))
        experts = [_transformer(spec, vae, blocks, heads) for _ in range(1 if spec.boundary_ratio is None else 2)]
        parts: dict[str, Any] = {
            "tokenizer": tokenizer,
            "text_encoder": text_encoder,
            "vae": vae,
            "scheduler": UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
            ),
            "transformer": experts[0],
            "transformer_2": experts[1] if len(experts) == 2 else None,
            "boundary_ratio": spec.boundary_ratio,
            "expand_timesteps": spec.boundary_ratio is None,
        }
    if "text_to_video" in spec.modes:
        pipeline = WanPipeline(**parts)
    else:
        pipeline = WanImageToVideoPipeline(image_processor=None, image_encoder=None, **parts)
    pipeline.save_pretrained(str(folder))


def _tokenizer() -> T5Tokenizer:
    """A Unigram tokenizer of the class that Wan uses, over printable ASCII; anything else is one unknown token."""
    letters = [sign for sign in string.printable if not sign.isspace()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -2.0)]
    vocabulary += [(sign, -4.0) for sign in letters] + [(f"▁{sign}", -3.5) for sign in letters]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _text_encoder(vocab_size: int) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=vocab_size, d_model=_TEXT_DIM, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    return UMT5EncoderModel(config)


def _vae(spec: ModelSpec) -> AutoencoderKLWan:
    sizes = _VAE_5B if spec.boundary_ratio is None else _VAE_A14B
    channels = sizes["z_dim"]
    return AutoencoderKLWan(
        num_res_blocks=1,
        attn_scales=[],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        is_residual=spec.boundary_ratio is None,
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
        **sizes,
    )


def _transformer(spec: ModelSpec, vae: AutoencoderKLWan, blocks: int, heads: int) -> WanTransformer3DModel:
    channels = vae.config.z_dim
    # Image-to-video on A14B reads the noisy latent, a 4-channel mask and the latent of the conditioning frames.
    conditioning = channels + 4 if "first_last_frame" in spec.modes else 0
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=24,
        in_channels=channels + conditioning,
        out_channels=channels,
        text_dim=_TEXT_DIM,
        freq_dim=32,
        ffn_dim=48,
        num_layers=blocks,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=1024,
    )
