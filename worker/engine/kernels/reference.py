"""The fused formulas in plain torch: what the Triton kernels are compared with, and what the tests run on a CPU."""

from __future__ import annotations

import torch
from torch.nn import functional

from worker.engine.kernels import FP8_LARGEST, LEAST


def add_norm(
    hidden: torch.Tensor,
    *,
    eps: float,
    update: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    norm: bool = True,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Kernels.add_norm`."""
    rows, width = hidden.shape
    total = hidden
    if update is not None:
        change = update.float() if gate is None else update.float() * _spread(gate, rows)
        total = (hidden.float() + change).to(hidden.dtype)
        if out is not None:
            total = out.copy_(total)
    if not norm:
        return total, total
    affine = None if weight is None else weight.float()
    normed = functional.layer_norm(total.float(), (width,), affine, None if bias is None else bias.float(), eps)
    if scale is not None and shift is not None:
        normed = normed * (1 + _spread(scale, rows)) + _spread(shift, rows)
    return total, normed.to(hidden.dtype)


def rms_rope(
    query: torch.Tensor,
    key: torch.Tensor,
    query_weight: torch.Tensor,
    key_weight: torch.Tensor,
    cosine: torch.Tensor,
    sine: torch.Tensor,
    *,
    eps: float,
) -> None:
    """See `Kernels.rms_rope`."""
    tokens, head = cosine.shape
    for each, weight in ((query, query_weight), (key, key_weight)):
        normed = functional.rms_norm(each, (each.shape[1],), weight, eps)
        pairs = normed.reshape(-1, tokens, each.shape[1] // head, head // 2, 2).float()
        turned = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1)
        cos, sin = (angle.reshape(1, tokens, 1, head // 2, 2) for angle in (cosine, sine))
        each.copy_((pairs * cos + turned * sin).reshape(each.shape))


def rms_silu(video: torch.Tensor, gamma: torch.Tensor, *, silu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    """See `Kernels.rms_silu`; with the roundings of Diffusers' `WanRMS_norm`, so that the bits agree with it."""
    half = video.dtype in (torch.float16, torch.bfloat16)
    normed = functional.normalize(video.float() if half else video, dim=1).to(video.dtype)
    normed = normed * video.shape[1] ** 0.5 * gamma
    result = functional.silu(normed) if silu else normed
    return result if out is None else out.copy_(result)


def quantize_rows(rows: torch.Tensor, *, gelu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Kernels.quantize_rows`. In the rows' own dtype: a wide activation in float32 costs memory and time."""
    if gelu:
        rows = functional.gelu(rows, approximate="tanh")
    largest = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1, keepdim=True).float()
    # Times the reciprocal, as CUDA divides by a number: the scale has the same bits on every device.
    scale = largest.clamp_(min=LEAST) * (1 / FP8_LARGEST)
    return (rows * scale.reciprocal().to(rows.dtype)).to(torch.float8_e4m3fn), scale


def _spread(modulation: torch.Tensor, rows: int) -> torch.Tensor:
    """[m, width] for `rows` rows; [1, width] stays as it is."""
    return modulation if modulation.shape[0] == 1 else modulation.repeat_interleave(rows // modulation.shape[0], dim=0)
