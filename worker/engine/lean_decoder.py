"""The Wan VAE's decoder without the copies that Diffusers makes around its convolutions.

Diffusers clones, concatenates and pads the frames before each convolution, and computes norm and SiLU in six passes.
Here norm and SiLU write into the tensor that the convolution reads, behind the two frames kept of the chunk before;
the convolution pads height and width itself; what `torch.stack` would lay out again keeps its layout. On a CPU the bits
are those of Diffusers; on CUDA norm and SiLU are one kernel, which rounds once where Diffusers rounds up to four times.
"""

from __future__ import annotations

import copy
import logging
import time
from functools import cache
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    CACHE_T,
    WanCausalConv3d,
    WanDecoder3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import nn
from torch.nn import functional

from worker.engine import kernels
from worker.engine.kernels import KernelFailed, Kernels, reference
from worker.engine.models.cpu_convolutions import CpuConvolution

logger = logging.getLogger(__name__)
# Of the norm of the result. The reference rounds bf16 up to four times, the kernel once.
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_FIRST_CHUNK = "Rep"  # Diffusers' mark in the feature cache: there is no frame to double before the second chunk


def lean(vae: AutoencoderKLWan, *, fused: bool = True) -> AutoencoderKLWan:
    """`vae` with a decoder of its own that shares the weights; `vae` itself where hooks sit on the decoder's layers.

    fused: use the kernel for norm and SiLU where the device has it. The twin is for the loop over latent frames, with
    a feature cache; its encoder is the original's.
    """
    if any("forward" in vars(each) or hasattr(each, "_diffusers_hook") for each in vae.decoder.modules()):
        return vae
    twin = copy.copy(vae)
    weights = {id(each): each for each in vae.decoder.parameters()}
    twin._modules = {**vae._modules, "decoder": copy.deepcopy(vae.decoder, weights)}
    widths = {each.gamma.numel() for each in vae.decoder.modules() if isinstance(each, WanRMS_norm)}
    on_gpu = fused and vae.device.type == "cuda"
    by = _kernels(vae.device, vae.dtype, tuple(sorted(widths))) if on_gpu else reference
    for module in twin.decoder.modules():
        if type(module) in _LEAN and _is_known(module):
            module.__class__ = _LEAN[type(module)]
            module.by = by
        if isinstance(module, _Convolution):
            module.padding = (0, module._padding[2], module._padding[0])
    return twin


@cache
def _kernels(device: torch.device, dtype: torch.dtype, widths: tuple[int, ...]) -> Kernels:
    """Triton's where they agree with the reference on this device; chosen once, with a line in the log."""
    began = time.perf_counter()
    try:
        by = kernels.of(device)
        off = max(_off(by, width, dtype, device) for width in widths)
    except KernelFailed as failure:
        logger.info("the VAE's norm is torch's own: %s", failure)
        return reference
    if not off <= _TOLERANCES.get(dtype, 0.0):  # NaN too
        logger.info("the VAE's norm is torch's own: the kernel is off by %.1e in %s", off, dtype)
        return reference
    took_s = time.perf_counter() - began
    logger.info("the VAE's norm and SiLU are one kernel, off by %.1e in %s; compiled in %.1f s", off, dtype, took_s)
    return by


@torch.no_grad()
def _off(by: Kernels, width: int, dtype: torch.dtype, device: torch.device) -> float:
    video = torch.randn(1, width, 3, 8, 16, device=device).to(dtype, memory_format=torch.channels_last_3d)
    gamma = torch.randn(width, 1, 1, 1, device=device).to(dtype)
    whole = torch.zeros(1, width, 3 + CACHE_T, 8, 16, device=device, dtype=dtype).to(
        memory_format=torch.channels_last_3d
    )
    found = by.rms_silu(video, gamma, silu=True, out=whole[:, :, CACHE_T:]).float()
    wanted = reference.rms_silu(video, gamma, silu=True).float()
    return float((found - wanted).norm() / wanted.norm()) + float(whole[:, :, :CACHE_T].abs().sum())


class _Norm(WanRMS_norm):  # type: ignore[misc]
    by: Kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.into(x, None, silu=False)

    def into(self, x: torch.Tensor, out: torch.Tensor | None, *, silu: bool) -> torch.Tensor:
        try:
            return self.by.rms_silu(x, self.gamma, silu=silu, out=out)
        except KernelFailed as failure:
            logger.warning("the VAE's norm is torch's own from here on: %s", failure)
            self.by = reference
            return reference.rms_silu(x, self.gamma, silu=silu, out=out)


class _Convolution(WanCausalConv3d):  # type: ignore[misc]
    by: Kernels

    def forward(self, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        missing = self._padding[4]
        if cache_x is not None and missing > 0:
            x = torch.cat([cache_x, x], dim=2)
            missing -= cache_x.shape[2]
        return self.convolved(functional.pad(x, (0, 0, 0, 0, missing, 0)) if missing > 0 else x)

    def convolved(self, x: torch.Tensor) -> torch.Tensor:
        """Of frames that are complete in time; height and width are padded here."""
        found: torch.Tensor = self._conv_forward(x, self.weight, self.bias)
        return found


class _CpuConvolution(_Convolution, CpuConvolution):
    """Of a VAE on a CPU."""


class _ResidualBlock(WanResidualBlock):  # type: ignore[misc]
    by: Kernels

    def forward(self, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None) -> torch.Tensor:
        shortcut = self.conv_shortcut(x)
        x = _convolved(self.conv1, x, feat_cache, feat_idx, norm=self.norm1)
        x = _convolved(self.conv2, x, feat_cache, feat_idx, norm=self.norm2)
        return x.add_(shortcut)


class _Resample(WanResample):  # type: ignore[misc]
    by: Kernels

    def forward(self, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None) -> torch.Tensor:
        if self.mode == "upsample3d":
            if feat_cache[feat_idx[0]] is None:
                feat_cache[feat_idx[0]] = _FIRST_CHUNK
                feat_idx[0] += 1
            else:
                x = _woven(_convolved(self.time_conv, x, feat_cache, feat_idx))
        batch, channels, frames, height, width = x.shape
        pictures = x.permute(0, 2, 1, 3, 4).reshape(batch * frames, channels, height, width)
        # In the dtype as it is: the nearest neighbour of a number is that number.
        pictures = functional.interpolate(pictures, scale_factor=2.0, mode="nearest-exact")
        pictures = self.resample[1](pictures)
        video: torch.Tensor = pictures.view(batch, frames, *pictures.shape[1:]).permute(0, 2, 1, 3, 4)
        return video


class _Decoder(WanDecoder3d):  # type: ignore[misc]
    by: Kernels

    def forward(
        self, x: torch.Tensor, feat_cache: Any = None, feat_idx: Any = None, first_chunk: bool = False
    ) -> torch.Tensor:
        x = _convolved(self.conv_in, x, feat_cache, feat_idx)
        x = self.mid_block(x, feat_cache=feat_cache, feat_idx=feat_idx)
        for up_block in self.up_blocks:
            x = up_block(x, feat_cache=feat_cache, feat_idx=feat_idx, first_chunk=first_chunk)
        return _convolved(self.conv_out, x, feat_cache, feat_idx, norm=self.norm_out)


_LEAN: dict[type[nn.Module], type[nn.Module]] = {
    WanRMS_norm: _Norm,
    WanCausalConv3d: _Convolution,
    CpuConvolution: _CpuConvolution,
    WanResidualBlock: _ResidualBlock,
    WanResample: _Resample,
    WanDecoder3d: _Decoder,
}


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, WanRMS_norm):
        return module.channel_first and not isinstance(module.bias, torch.Tensor)
    return not isinstance(module, WanResample) or module.mode in ("upsample2d", "upsample3d")


def _convolved(
    convolution: _Convolution, x: torch.Tensor, feat_cache: Any, feat_idx: Any, norm: _Norm | None = None
) -> torch.Tensor:
    """`x`, normed and activated where there is a `norm`, through a convolution over three frames; keeps the last two.

    Where Diffusers keeps one frame and pads, two are kept here of which the first is zero: the same numbers.
    """
    before = feat_cache[feat_idx[0]]
    batch, channels, frames, height, width = x.shape
    whole = torch.empty(
        (batch, channels, CACHE_T + frames, height, width),
        dtype=x.dtype,
        device=x.device,
        # What the convolution gives has the layout of its weights.
        memory_format=_layout(convolution.weight),
    )
    if isinstance(before, torch.Tensor):
        whole[:, :, :CACHE_T].copy_(before)
    else:
        whole[:, :, :CACHE_T].zero_()
    if norm is None:
        whole[:, :, CACHE_T:].copy_(x)
    else:
        norm.into(x, whole[:, :, CACHE_T:], silu=True)
    feat_cache[feat_idx[0]] = whole[:, :, -CACHE_T:].clone()
    feat_idx[0] += 1
    return convolution.convolved(whole)


def _woven(doubled: torch.Tensor) -> torch.Tensor:
    """[B, 2 * C, T, H, W] to [B, C, 2 * T, H, W]: the halves of the channels are frames by turns."""
    batch, channels, frames, height, width = doubled.shape
    woven = torch.empty(
        (batch, channels // 2, 2 * frames, height, width),
        dtype=doubled.dtype,
        device=doubled.device,
        memory_format=_layout(doubled),
    )
    woven[:, :, 0::2].copy_(doubled[:, : channels // 2])
    woven[:, :, 1::2].copy_(doubled[:, channels // 2 :])
    return woven


def _layout(tensor: torch.Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format
