"""Gradients of an expert block by block: only the input of each block is kept, and the block is computed again.

The inputs of 40 blocks are 13 GB for 81 frames of 832x480. In host memory they cost a copy there and back, which is
short beside what a block computes.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import WanTransformer3DModel


def apply(expert: WanTransformer3DModel, *, on_host: bool) -> None:
    """Have the blocks of `expert` computed again for their gradients. on_host: keep their inputs in host memory."""

    def call(block: torch.nn.Module, hidden_states: torch.Tensor, *rest: Any) -> torch.Tensor:
        if not hidden_states.requires_grad:  # that of the first block: its LoRA needs gradients all the same
            hidden_states = hidden_states.detach().requires_grad_()
        output: torch.Tensor = _Recomputed.apply(block, on_host, hidden_states, *rest)  # type: ignore[no-untyped-call]
        return output

    expert.enable_gradient_checkpointing(call)


class _Recomputed(torch.autograd.Function):
    """A block that keeps nothing but its input. Beside it only the block's own parameters get gradients."""

    @staticmethod
    def forward(ctx: Any, block: torch.nn.Module, on_host: bool, hidden_states: torch.Tensor, *rest: Any) -> Any:
        ctx.block, ctx.rest, ctx.device = block, rest, hidden_states.device
        ctx.kept = hidden_states
        if on_host:
            pinned = hidden_states.is_cuda
            ctx.kept = torch.empty(hidden_states.shape, dtype=hidden_states.dtype, pin_memory=pinned)
            ctx.kept.copy_(hidden_states, non_blocking=pinned)
        return block(hidden_states, *rest)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        hidden_states = ctx.kept.to(ctx.device, non_blocking=True).detach().requires_grad_()
        ctx.kept = None
        with torch.enable_grad():
            output = ctx.block(hidden_states, *ctx.rest)
        torch.autograd.backward(output, gradients)
        return None, None, hidden_states.grad, *(None for _ in ctx.rest)
