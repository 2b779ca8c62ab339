"""Convolutions of a small VAE on a CPU by oneDNN, several times as fast as what torch chooses for them.

In float32 torch takes its own `slow_conv3d` where batch x channels x frames x height is at most 20,480 and the batch is
one (`ConvParams::use_mkldnn` in aten/src/ATen/native/Convolution.cpp): all of the tiny models', most of the demo's.
"""

from __future__ import annotations

from types import MethodType

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d


def use_onednn(vae: AutoencoderKLWan) -> None:
    """Have the convolutions over time of `vae` computed by oneDNN for float32 on a CPU, where torch was built with it.

    Numbers differ by rounding.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d):
            module._conv_forward = MethodType(_convolved, module)


def _convolved(
    module: WanCausalConv3d, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """As `torch.nn.Conv3d._conv_forward`."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        found: torch.Tensor = torch.nn.Conv3d._conv_forward(module, x, weight, bias)
        return found
    return torch.mkldnn_convolution(x, weight, bias, module.padding, module.stride, module.dilation, module.groups)
