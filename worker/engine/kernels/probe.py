"""How far kernels are from the reference on random numbers: what decides whether they are used.

The sizes are those of the expert, the weights are drawn: those of the expert may be elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from worker.engine.kernels import Kernels, reference

# Of the norm of the result: what the last bit of a few bf16 numbers makes, which is where the roundings may differ.
TOLERANCE = 2e-3
TOKENS = 96
_Results = dict[str, tuple[torch.Tensor, ...]]


@torch.no_grad()
def block(
    by: Kernels, *, heads: int, head: int, device: torch.device, dtype: torch.dtype, tokens: int = TOKENS
) -> dict[str, float]:
    """How far each kernel of a block is off, as a share of the norm of its result. Raises KernelFailed."""
    width = heads * head
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    hidden, update, query, key = (drawn(tokens, width) for _ in range(4))
    modulation = drawn(2, 6, width, dtype=torch.float32)
    weight, bias = drawn(2, width, dtype=torch.float32)
    query_weight, key_weight = drawn(2, width)
    angles = drawn(tokens, head // 2, dtype=torch.float32).repeat_interleave(2, dim=1)
    shift, scale, gate = modulation.unbind(1)[:3]

    def turned(each: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
        pair = query.clone(), key.clone()
        each.rms_rope(*pair, query_weight, key_weight, angles.cos(), angles.sin(), eps=1e-6)
        return pair

    def all_of(each: Kernels) -> _Results:
        return {
            "norm": each.add_norm(hidden, eps=1e-6, scale=scale, shift=shift)[1:],
            "gate, norm": each.add_norm(hidden, eps=1e-6, update=update, gate=gate, weight=weight, bias=bias),
            "add, norm": each.add_norm(hidden, eps=1e-6, update=update, scale=scale, shift=shift, out=hidden.clone()),
            "gate": each.add_norm(hidden, eps=0.0, update=update, gate=gate, norm=False),
            "rope": turned(each),
        }

    return _compared(by, all_of)


@torch.no_grad()
def quantizing(by: Kernels, *, width: int, wide: int, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """How far rows of `width`, and GELU and rows of `wide`, are off behind fp8 and scale. Raises KernelFailed."""
    generator = torch.Generator().manual_seed(0)
    plain, inner = (3 * torch.randn(TOKENS, each, generator=generator).to(device, dtype) for each in (width, wide))

    def all_of(each: Kernels) -> _Results:
        pairs = {"fp8": each.quantize_rows(plain), "GELU, fp8": each.quantize_rows(inner, gelu=True)}
        return {name: (quantized.float() * scale,) for name, (quantized, scale) in pairs.items()}

    return _compared(by, all_of)


def _compared(by: Kernels, all_of: Callable[[Kernels], _Results]) -> dict[str, float]:
    found, wanted = all_of(by), all_of(reference)
    return {name: max(map(_off, found[name], wanted[name])) for name in wanted}


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())
