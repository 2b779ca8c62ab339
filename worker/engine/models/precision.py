"""The precision of the experts' linear weights: bf16 as they are, fp8 or int8.

fp8 to save memory is Diffusers' layerwise casting; otherwise `ScaledLinear`: linear layers whose weight is fp8 or int8
with a scale for each output channel, multiplied as such or cast back.

`arithmetic="cast"` saves memory only: the weight is cast to the input's dtype for its product. `arithmetic="quantized"`
also quantises the input, one scale for each token, and multiplies on the GPU's fp8 units (compute capability 8.9 and
newer) or int8 units (8.0 and newer), which have twice the rate of bf16. Both products run on a CPU too.

The fp8 product is accumulated fast: Hopper's tensor cores then keep about 14 bits of a partial sum, where the exact way
adds it in fp32 every 128 terms and takes 12% longer (one H200, 2026-11-26: 3.32 against 2.97 ms). The largest relative
error of a single sum of 4,096 terms is nearly 2% (DeepSeek-V3, arXiv:2412.19437, section 3.3.2); rounding to fp8 itself
is off by up to 6% a term. Layers that share an input, as q, k and v of self-attention do, quantise it once.

Weights and inputs are x = scale * q with scale = max |x| of the row / largest value of the format (symmetric); fp8 is
float8_e4m3fn, largest value 448 (Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433), int8 127.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

from worker.engine.kernels import LEAST, Kernels, reference
from worker.request.plan import MemoryPlan

Format = Literal["fp8", "int8"]
Arithmetic = Literal["cast", "quantized"]

DTYPES: dict[Format, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_INT8_LARGEST = 127
# What the matrix units ask of the inner and outer size (cuBLASLt for fp8, CUTLASS for int8).
_MULTIPLE: dict[Format, int] = {"fp8": 16, "int8": 8}
# Rows that are quantised at a time without a kernel, or up to twice as many. Of the 75,600 of 81 frames at 1280x720 all
# at once, what stands between the feed-forward's input and its product would take 3 GB in fp8 and 9 GB in int8.
LEAST_ROWS = 8192
_FEWEST_INT8_ROWS = 17  # torch._int_mm asks for more than 16
_kernels: ContextVar[Kernels | None] = ContextVar("kernels that quantise", default=None)


@contextmanager
def quantized_by(kernels: Kernels | None) -> Iterator[None]:
    """Within it `kernels` quantise what the layers multiply in fp8; with None torch does."""
    token = _kernels.set(kernels)
    try:
        yield
    finally:
        _kernels.reset(token)


class ScaledLinear(nn.Linear):
    """`weight`: fp8 or int8 [out, in]; `scale`: float32 [out, 1]; `bias` as it was; `shared`: see `SharedInput`."""

    scale: torch.Tensor
    format: Format
    arithmetic: Arithmetic
    shared: SharedInput | None = None

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
        if self.format == "fp8" and input.dtype == torch.bfloat16:
            shared = None if torch.compiler.is_compiling() else self.shared
            product = self._product_fp8(_quantized(rows) if shared is None else shared.quantized(self, input, rows))
        else:
            product = rows.new_empty(rows.shape[0], self.out_features)
            for part, target in zip(_parts(rows), _parts(product), strict=True):
                target.copy_(self._multiplied(*quantize(part, self.format)))
            product = product if self.bias is None else product.add_(self.bias)
        return product.reshape(*input.shape[:-1], self.out_features)

    def after_gelu(self, input: torch.Tensor) -> torch.Tensor:
        """`forward` of the GELU (tanh) of `input`, which is part of the quantising where a kernel does that."""
        by = _kernels.get()
        computes = self.arithmetic == "quantized" and self.format == "fp8" and input.dtype == torch.bfloat16
        if by is None or not computes:
            return self(functional.gelu(input, approximate="tanh"))  # type: ignore[no-any-return]
        product = self._product_fp8([by.quantize_rows(input.reshape(-1, self.in_features), gelu=True)])
        return product.reshape(*input.shape[:-1], self.out_features)

    def _product_fp8(self, quantized: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """[n, in] in parts to [n, out] in bf16: bias and output within the product."""
        if len(quantized) == 1:
            return self._multiplied(*quantized[0], bias=self.bias)
        rows = sum(part.shape[0] for part, _ in quantized)
        product = quantized[0][0].new_empty(rows, self.out_features, dtype=torch.bfloat16)
        for (part, scale), target in zip(quantized, _parts(product), strict=True):
            if torch.compiler.is_compiling():
                target.copy_(self._multiplied(part, scale, bias=self.bias))
            else:
                self._multiplied(part, scale, bias=self.bias, out=target)
        return product

    def _multiplied(self, quantized: torch.Tensor, scale: torch.Tensor, **options: torch.Tensor | None) -> torch.Tensor:
        """[n, in] to [n, out]; bf16 for fp8, float32 and without the bias for int8."""
        if self.format == "fp8":
            product: torch.Tensor = torch._scaled_mm(
                quantized,
                self.weight.t(),
                scale_a=scale,
                scale_b=self.scale.t(),
                out_dtype=torch.bfloat16,
                use_fast_accum=True,
                **options,
            )
            return product
        return (torch._int_mm(quantized, self.weight.t()) * scale).mul_(self.scale.t())


class SharedInput:
    """The quantised input of layers that are called one after the other with the same tensor.

    Kept from the first of `layers` to the last, and only for the very object that the first was given.
    """

    def __init__(self, layers: Sequence[ScaledLinear]) -> None:
        self._first, self._last = weakref.ref(layers[0]), weakref.ref(layers[-1])
        self._input: torch.Tensor | None = None
        self._quantized: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in layers:
            layer.shared = self

    def quantized(
        self, layer: ScaledLinear, input: torch.Tensor, rows: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        known = self._input is input and layer is not self._first()
        found = self._quantized if known else _quantized(rows)
        self._input, self._quantized = (None, []) if layer is self._last() else (input, found)
        return found


def _quantized(rows: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All at once by a kernel, which leaves nothing between; else in parts."""
    by = None if torch.compiler.is_compiling() else _kernels.get()
    return [quantize(part, "fp8") for part in _parts(rows)] if by is None else [by.quantize_rows(rows)]


def _parts(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return rows.tensor_split(max(1, rows.shape[0] // LEAST_ROWS))


def quantize(rows: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, n] in any float dtype to the format [rows, n] and its scale, float32 [rows, 1]."""
    if rows.dtype.itemsize == 1:  # torch has no largest value of fp8; bf16 holds every fp8 number exactly
        rows = rows.to(torch.bfloat16)
    if format == "fp8":
        return reference.quantize_rows(rows)
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True).float().clamp(min=LEAST)
    scale = largest / _INT8_LARGEST
    return (rows.float() / scale).round_().clamp_(-_INT8_LARGEST, _INT8_LARGEST).to(torch.int8), scale


def replace_linears(module: nn.Module, format: Format, arithmetic: Arithmetic) -> None:
    """Put a quantised twin in the place of every linear layer of `module`, one after the other."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear) and not isinstance(child, ScaledLinear):
            setattr(module, name, ScaledLinear.of(child, format, arithmetic))
        else:
            replace_linears(child, format, arithmetic)
    together = [getattr(module, name, None) for name in ("to_q", "to_k", "to_v")]
    if all(isinstance(each, ScaledLinear) for each in together):
        SharedInput([each for each in together if isinstance(each, ScaledLinear)])


def computing(module: nn.Module) -> list[ScaledLinear]:
    """The layers of `module` that multiply quantised values, in its order."""
    return [each for each in module.modules() if isinstance(each, ScaledLinear) and each.arithmetic == "quantized"]


def casts(plan: MemoryPlan, arithmetic: Arithmetic) -> bool:
    """Whether the weights are fp8 only to save memory: Diffusers' layerwise casting."""
    return plan.precision == "fp8" and arithmetic == "cast"


def quantise(block: nn.Module, plan: MemoryPlan, arithmetic: Arithmetic) -> None:
    """Quantise the linear layers of a block, in place, on the device where they are."""
    replace_linears(block, "fp8" if plan.precision == "fp8" else "int8", arithmetic)


def apply(
    expert: WanTransformer3DModel, plan: MemoryPlan, compute_dtype: torch.dtype, arithmetic: Arithmetic = "cast"
) -> None:
    """Bring the linear weights of `expert`'s blocks to the precision of `plan`, in place.

    Layerwise casting also takes an expert without weights: those that are read later have its types.
    """
    if casts(plan, arithmetic):
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    elif plan.precision in ("fp8", "int8"):
        for block in expert.blocks:
            quantise(block, plan, arithmetic)
