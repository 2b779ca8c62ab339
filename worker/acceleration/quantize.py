"""The precision of the experts' linear weights: bf16 as they are, fp8 in storage, or int8.

fp8: Diffusers' layerwise casting keeps weights as float8_e4m3fn and casts each layer to bf16 for its turn. int8:
torchao's weight-only quantisation with a scale for every output channel, for GPUs from before fp8.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_

from worker.memory import MemoryPlan


def apply(expert: WanTransformer3DModel, plan: MemoryPlan, compute_dtype: torch.dtype) -> None:
    """Bring the linear weights of `expert`'s blocks to the precision of `plan`, in place."""
    if plan.precision == "fp8":
        expert.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
    elif plan.precision == "int8":
        quantize_(expert, Int8WeightOnlyConfig(), filter_fn=_is_block_linear)


def _is_block_linear(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and name.startswith("blocks.")
