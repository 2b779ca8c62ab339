"""Convolutions of a small VAE on a CPU by oneDNN, several times as fast as what torch chooses for them.

In float32 torch takes its own `slow_conv3d` where batch x channels x frames x height is at most 20,480 and the batch is
one (`ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp): all of the tiny models', most of the demo's.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d


class CpuConvolution(WanCausalConv3d):  # type: ignore[misc]
    """By oneDNN for float32 on a CPU, whatever torch would choose; all else is torch's own."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32:
            return torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, self.dilation, self.groups)
        found: torch.Tensor = super()._conv_forward(x, weight, bias)
        return found


def use_onednn(vae: AutoencoderKLWan) -> None:
    """Make the convolutions over time of `vae` a `CpuConvolution`, where torch was built with oneDNN.

    Numbers differ by rounding.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module.__class__ = CpuConvolution
