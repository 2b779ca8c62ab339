"""The precision of the experts' linear weights: bf16 as they are, fp8 in storage, or int8.

fp8: Diffusers' layerwise casting keeps weights as float8_e4m3fn and casts each layer to bf16 for its turn. int8: one
scale for every output channel, symmetric, cast back for the product in the same way; for GPUs from before fp8. Both
save memory, not arithmetic.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

from worker.memory import MemoryPlan

_INT8_MAX = 127


class Int8Linear(nn.Linear):
    """A linear layer whose weight is int8 [out, in] with a scale [out, 1] in the dtype of its input's arithmetic.

    Weights are w = scale * q with scale = max |w| of the output channel / 127 (symmetric rounding to nearest).
    """

    scale: torch.Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The int8 twin of `linear`; shares its bias."""
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        twin.in_features, twin.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / _INT8_MAX
        twin.weight = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)
        twin.register_buffer("scale", scale.to(linear.weight.dtype))
        twin.bias = linear.bias
        return twin

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.linear(input, self.weight.to(input.dtype) * self.scale.to(input.dtype), self.bias)


def apply(expert: WanTransformer3DModel, plan: MemoryPlan, compute_dtype: torch.dtype) -> None:
    """Bring the linear weights of `expert`'s blocks to the precision of `plan`, in place."""
    if plan.precision == "fp8":
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    elif plan.precision == "int8":
        for block in expert.blocks:
            _replace_linears(block)


def _replace_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8Linear.of(child))
        else:
            _replace_linears(child)
