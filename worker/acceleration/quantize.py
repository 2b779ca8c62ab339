"""The precision of the experts' linear weights: bf16 as they are, fp8 or int8.

To save memory: fp8 by Diffusers' layerwise casting, which keeps weights as float8_e4m3fn and casts each layer to bf16
for its turn; int8, for GPUs from before fp8, with a scale for each output channel. Where the arithmetic is to be
quantised too (`QUANTIZED_COMPUTE`), both have the layers of `scaled_linear`.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel

from worker.acceleration import scaled_linear
from worker.acceleration.scaled_linear import Arithmetic
from worker.memory import MemoryPlan


def apply(
    expert: WanTransformer3DModel, plan: MemoryPlan, compute_dtype: torch.dtype, arithmetic: Arithmetic = "cast"
) -> None:
    """Bring the linear weights of `expert`'s blocks to the precision of `plan`, in place."""
    if plan.precision == "fp8" and arithmetic == "cast":
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    elif plan.precision in ("fp8", "int8"):
        for block in expert.blocks:
            scaled_linear.replace_linears(block, "fp8" if plan.precision == "fp8" else "int8", arithmetic)
