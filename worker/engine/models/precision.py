"""The precision of the experts' linear weights: bf16 as they are, fp8 or int8.

fp8 to save memory is Diffusers' layerwise casting; otherwise `ScaledLinear`: linear layers whose weight is fp8 or int8
with a scale for each output channel, multiplied as such or cast back.

`arithmetic="cast"` saves memory only: the weight is cast to the input's dtype for its product. `arithmetic="quantized"`
also quantises the input, one scale for each token, and multiplies on the GPU's fp8 units (compute capability 8.9 and
newer) or int8 units (8.0 and newer), which have twice the rate of bf16. Both products run on a CPU too.

Weights and inputs are x = scale * q with scale = max |x| of the row / largest value of the format (symmetric); fp8 is
float8_e4m3fn, largest value 448 (Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433), int8 127.
"""

from __future__ import annotations

from typing import Literal

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

from worker.request.plan import MemoryPlan

Format = Literal["fp8", "int8"]
Arithmetic = Literal["cast", "quantized"]

DTYPES: dict[Format, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
LARGEST: dict[Format, float] = {"fp8": 448.0, "int8": 127.0}
# What the matrix units ask of the inner and outer size (cuBLASLt for fp8, CUTLASS for int8).
_MULTIPLE: dict[Format, int] = {"fp8": 16, "int8": 8}
# Of a row of zeros: its scale has a reciprocal in every dtype.
_LEAST = 1e-20
# Rows that are quantised at a time, or up to twice as many. Of the 75,600 of 81 frames at 1280x720 all at once, what
# stands between the feed-forward's input and its product would take 3 GB in fp8 and 9 GB in int8.
LEAST_ROWS = 8192
_FEWEST_INT8_ROWS = 17  # torch._int_mm asks for more than 16


class ScaledLinear(nn.Linear):
    """`weight`: fp8 or int8 [out, in]; `scale`: float32 [out, 1]; `bias` as it was."""

    scale: torch.Tensor
    format: Format
    arithmetic: Arithmetic

    @classmethod
    def of(cls, linear: nn.Linear, format: Format, arithmetic: Arithmetic) -> ScaledLinear:
        """The quantised twin of `linear`; shares its bias. Sizes that the matrix units do not take are cast."""
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        twin.in_features, twin.out_features = linear.in_features, linear.out_features
        weight, scale = quantize(linear.weight.detach(), format)
        twin.weight = nn.Parameter(weight, requires_grad=False)
        twin.register_buffer("scale", scale)
        twin.bias = linear.bias
        twin.format = format
        fits = linear.in_features % _MULTIPLE[format] == 0 and linear.out_features % _MULTIPLE[format] == 0
        twin.arithmetic = arithmetic if fits else "cast"
        return twin

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out] in the input's dtype."""
        rows = input.reshape(-1, self.in_features)
        if self.arithmetic == "cast" or (self.format == "int8" and rows.shape[0] < _FEWEST_INT8_ROWS):
            weight = self.weight.to(input.dtype) * self.scale.to(input.dtype)
            return functional.linear(input, weight, self.bias)
        product = rows.new_empty(rows.shape[0], self.out_features)
        parts = max(1, rows.shape[0] // LEAST_ROWS)
        for part, target in zip(rows.tensor_split(parts), product.tensor_split(parts), strict=True):
            target.copy_(self._quantized(part))
        product = product.reshape(*input.shape[:-1], self.out_features)
        return product if self.bias is None else product.add_(self.bias)

    def _quantized(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, in] to [n, out] without the bias; bf16 for fp8, float32 for int8."""
        quantized, scale = quantize(rows, self.format)
        if self.format == "fp8":
            product: torch.Tensor = torch._scaled_mm(
                quantized, self.weight.t(), scale_a=scale, scale_b=self.scale.t(), out_dtype=torch.bfloat16
            )
            return product
        return (torch._int_mm(quantized, self.weight.t()) * scale).mul_(self.scale.t())


def quantize(rows: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, n] in any float dtype to the format [rows, n] and its scale, float32 [rows, 1]."""
    if rows.dtype.itemsize == 1:  # torch has no largest value of fp8; bf16 holds every fp8 number exactly
        rows = rows.to(torch.bfloat16)
    largest = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=_LEAST)
    scale = largest / LARGEST[format]
    # fp8 in the rows' own dtype: bf16 has more digits, and a wide activation in fp32 costs memory and time.
    scaled = (rows.float() / scale).round() if format == "int8" else rows * scale.reciprocal().to(rows.dtype)
    return scaled.clamp(-LARGEST[format], LARGEST[format]).to(DTYPES[format]), scale


def replace_linears(module: nn.Module, format: Format, arithmetic: Arithmetic) -> None:
    """Put a quantised twin in the place of every linear layer of `module`, one after the other."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and not isinstance(child, ScaledLinear):
            setattr(module, name, ScaledLinear.of(child, format, arithmetic))
        else:
            replace_linears(child, format, arithmetic)


def computing(module: nn.Module) -> list[ScaledLinear]:
    """The layers of `module` that multiply quantised values, in its order."""
    return [each for each in module.modules() if isinstance(each, ScaledLinear) and each.arithmetic == "quantized"]


def apply(
    expert: WanTransformer3DModel, plan: MemoryPlan, compute_dtype: torch.dtype, arithmetic: Arithmetic = "cast"
) -> None:
    """Bring the linear weights of `expert`'s blocks to the precision of `plan`, in place."""
    if plan.precision == "fp8" and arithmetic == "cast":
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    elif plan.precision in ("fp8", "int8"):
        for block in expert.blocks:
            replace_linears(block, "fp8" if plan.precision == "fp8" else "int8", arithmetic)
