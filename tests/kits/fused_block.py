"""A block of Wan with random numbers, its inputs, and kernels that are counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from worker.engine.kernels import reference

CPU = torch.device("cpu")
WIDTH, HEADS, FFN = 64, 4, 160
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


def block_of(
    width: int = WIDTH, heads: int = HEADS, ffn: int = FFN, dtype: torch.dtype = torch.float32, seed: int = 0
) -> WanTransformerBlock:
    """With random numbers where a new block has ones and zeros; what Diffusers keeps in float32 stays so."""
    torch.manual_seed(seed)
    block = WanTransformerBlock(width, ffn, heads, cross_attn_norm=True).eval().requires_grad_(False)
    for norm in (block.norm2, block.attn1.norm_q, block.attn1.norm_k):
        norm.weight.normal_(1, 0.2)
    block.norm2.bias.normal_(0, 0.2)
    kept = {"scale_shift_table", "norm2.weight", "norm2.bias"}
    for name, each in block.named_parameters():
        each.data = each.data if name in kept else each.data.to(dtype)
    return block


def inputs_of(
    tokens: int = 30,
    width: int = WIDTH,
    heads: int = HEADS,
    dtype: torch.dtype = torch.float32,
    *,
    batch: int = 1,
    by_token: bool = False,
) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    angles = drawn(1, tokens, 1, width // heads // 2).repeat_interleave(2, dim=3)
    temb = drawn(batch, tokens, 6, width) if by_token else drawn(batch, 6, width)
    hidden, text = drawn(batch, tokens, width), drawn(batch, 9, width)
    return hidden.to(dtype), text.to(dtype), temb.to(dtype), (angles.cos(), angles.sin())


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def counted(by: Any = reference) -> tuple[Any, list[int]]:
    """`by`, with a count of its calls to `rms_rope`: one a block."""
    calls = [0]

    def rms_rope(*arguments: Any, **named: Any) -> None:
        calls[0] += 1
        by.rms_rope(*arguments, **named)

    return SimpleNamespace(add_norm=by.add_norm, rms_rope=rms_rope, rms_silu=by.rms_silu), calls
