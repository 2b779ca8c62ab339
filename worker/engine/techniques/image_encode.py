"""The conditioning video of a picture to the VAE's latents: layers of the encoder that stand still are left out.

Image-to-video encodes the picture with blank frames behind it, four at a time, each time with the features that every
layer keeps of the frames before. A layer looks back a few frames only, so that behind the picture one after the other
comes to stand still: the chunk is the one before, what the layers before it give is the same, and the features that it
keeps are, bit for bit, those that they replace. Then it gives the same for every further chunk of that kind, and is
passed over, with all layers before it. A chunk of another kind (the last picture) goes through all of them, from the
features they kept. Nothing is assumed about how far a layer looks back: each is compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import CACHE_T, WanCausalConv3d, WanEncoder3d, patchify

from worker.engine.techniques.base import Run, Setup, Technique

logger = logging.getLogger(__name__)

_CHUNK_FRAMES = 4
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(slots=True)
class Passes:
    """How often a layer met a chunk, and how often it was computed for it."""

    all: int = 0
    computed: int = 0

    @property
    def share_left_out(self) -> float:
        return 1 - self.computed / max(self.all, 1)


@dataclass(frozen=True, slots=True)
class _Standing:
    """The first `layers` of the encoder give `output` for a chunk like the last; `index` is the next one's place in the
    feature cache."""

    layers: int
    index: int
    output: torch.Tensor


class _Features:
    """The encoder's feature cache. While `still` it compares, and is so until an entry differs from the one it
    replaces. By this nothing is kept longer than the encoder itself keeps it."""

    def __init__(self, count: int) -> None:
        self.still = False
        self._entries: list[torch.Tensor | None] = [None] * count

    def __getitem__(self, index: int) -> torch.Tensor | None:
        return self._entries[index]

    def __setitem__(self, index: int, entry: torch.Tensor) -> None:
        self.still = self.still and same_bits(self._entries[index], entry)
        self._entries[index] = entry


def encode(vae: AutoencoderKLWan, pixels: torch.Tensor, passes: Passes) -> torch.Tensor:
    """What `AutoencoderKLWan._encode` gives without tiling, bit for bit: mean and log variance [B, 2 * z_dim, T, h, w].

    pixels: [B, 3, 4 * (T - 1) + 1, H, W] in the VAE's type, on its device. `passes` is added to. The device holds no
    more than it does for Diffusers, and waits for a few comparisons a chunk. Errors of torch pass through unchanged.
    """
    if vae.config.patch_size is not None:
        pixels = patchify(pixels, patch_size=vae.config.patch_size)
    layers = layers_of(vae.encoder)
    features = _Features(sum(isinstance(module, WanCausalConv3d) for module in vae.encoder.modules()))
    encoded: list[torch.Tensor] = []
    previous: torch.Tensor | None = None
    for chunk in _chunks(pixels):
        if previous is None or not same_bits(previous, chunk):
            standing = _Standing(0, 0, chunk)
        previous = chunk
        hidden, index = standing.output, [standing.index]
        passes.all += len(layers)
        for number in range(standing.layers, len(layers)):
            features.still = number == standing.layers
            hidden = layers[number](hidden, feat_cache=features, feat_idx=index)
            passes.computed += 1
            if features.still:
                standing = _Standing(number + 1, index[0], hidden)
        encoded.append(hidden)
    projected: torch.Tensor = vae.quant_conv(torch.cat(encoded, 2))
    return projected


def layers_of(encoder: WanEncoder3d) -> list[Callable[..., torch.Tensor]]:
    """`WanEncoder3d.forward` as the layers it runs one after the other, each with its part of the feature cache.

    The first convolution is cheap and belongs to the block behind it: what it gives need not be kept.
    """
    first, *others = encoder.down_blocks

    def begin(hidden: torch.Tensor, *, feat_cache: Any, feat_idx: list[int]) -> torch.Tensor:
        hidden = _cached_convolution(encoder.conv_in, hidden, feat_cache, feat_idx)
        begun: torch.Tensor = first(hidden, feat_cache=feat_cache, feat_idx=feat_idx)
        return begun

    def end(hidden: torch.Tensor, *, feat_cache: Any, feat_idx: list[int]) -> torch.Tensor:
        hidden = encoder.nonlinearity(encoder.norm_out(hidden))
        return _cached_convolution(encoder.conv_out, hidden, feat_cache, feat_idx)

    return [begin, *others, encoder.mid_block, end]


def reusing(vae: AutoencoderKLWan, passes: Passes) -> Callable[[torch.Tensor], torch.Tensor]:
    """A stand-in for `vae._encode`."""
    return partial(encode, vae, passes=passes)


def same_bits(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    """Whether two tensors of one type hold the same bits: 0 is not -0, and a NaN is itself. Waits for the device."""
    if one is None or one.shape != other.shape:
        return False
    bits = _BITS[other.element_size()]
    return torch.equal(one.view(bits), other.view(bits))


def _chunks(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    yield pixels[:, :, :1]
    for start in range(1, pixels.shape[2] - _CHUNK_FRAMES + 1, _CHUNK_FRAMES):
        yield pixels[:, :, start : start + _CHUNK_FRAMES]


def _cached_convolution(
    convolution: WanCausalConv3d, hidden: torch.Tensor, feat_cache: Any, feat_idx: list[int]
) -> torch.Tensor:
    index = feat_idx[0]
    before = feat_cache[index]
    kept = hidden[:, :, -CACHE_T:].clone()
    if kept.shape[2] < CACHE_T and before is not None:
        kept = torch.cat([before[:, :, -1:].to(kept.device), kept], dim=2)
    convolved: torch.Tensor = convolution(hidden, before)
    feat_cache[index] = kept
    feat_idx[0] += 1
    return convolved


class ImageEncode(Technique):
    """`ENABLE_IMAGE_ENCODE_REUSE`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._told: set[str] = set()

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        if run.request.mode not in ("image_to_video", "first_last_frame"):
            yield
            return
        reason = _hindrance(run)
        if not self.setup.settings.enable_image_encode_reuse or reason is not None:
            run.parameters["image_encode_reuse"] = "off"
            if self.setup.settings.enable_image_encode_reuse and reason is not None and reason not in self._told:
                self._told.add(reason)
                logger.info("image_encode_reuse is off: %s", reason)
            yield
            return
        run.parameters["image_encode_reuse"] = "on"
        vae, passes = run.components.shared.vae, Passes()
        # Of this one object: `encode` calls it, and with it the hooks and the distribution stay Diffusers' own.
        vae.__dict__["_encode"] = reusing(vae, passes)
        try:
            yield
        finally:
            del vae.__dict__["_encode"]
        run.parameters["image_encode_share"] = round(passes.share_left_out, 3)


def _hindrance(run: Run) -> str | None:
    """Why there is nothing to leave out in this run, or None."""
    if run.spec.boundary_ratio is None:
        return "this model encodes the picture alone, without frames behind it"
    if run.plan.vae_tiling:
        return "the memory plan encodes in tiles"
    return None
