"""The fused formulas as Triton kernels: each row is read once, computed in registers and written once.

A row of the experts is 5120 numbers wide (3072 for 5B): one program a row, 8 warps, 16 bytes a thread and access.
Additions and products are not contracted (`enable_fp_fusion=False`), so that they round as Diffusers' own do; the
kernels wait for memory, not for arithmetic. What every row needs (modulation and weights, 20 KB each in float32) is to
stay in the L1 cache, which what is read once must not take from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

from worker.engine.kernels import FP8_LARGEST, LEAST, KernelFailed, reference

_WARPS = 8
# Of a row as wide as the feed-forward's inside.
_WIDE, _WIDE_WARPS = 8192, 16
# Numbers of a tile of the VAE's norm, whose rows are 96 to 1024 wide.
_TILE = 4096


# Numbers of rows are no constants of the compiler: it would compile once more for some of them.
@triton.jit(do_not_specialize=["rows_per_modulation"])
def _add_norm(
    hidden,
    update,
    gate,
    scale,
    shift,
    weight,
    bias,
    total,
    normed,
    eps,
    rows_per_modulation,
    modulation_stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    AFFINE: tl.constexpr,
    MODULATED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = row * WIDTH + columns
    modulation = (row // rows_per_modulation) * modulation_stride + columns
    value = tl.load(hidden + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if ADD:
        change = tl.load(update + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if GATED:
            change = change * tl.load(gate + modulation, mask=inside, other=0.0, eviction_policy="evict_last")
        rounded = (value + change).to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        value = rounded.to(tl.float32)
    if NORM:
        mean = tl.sum(value, axis=0) / WIDTH
        centred = tl.where(inside, value - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / WIDTH
        normal = centred * tl.rsqrt(variance + eps)
        if AFFINE:
            normal = normal * tl.load(weight + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(
                tl.float32
            )
            normal = normal + tl.load(bias + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(
                tl.float32
            )
        if MODULATED:
            normal = normal * (1.0 + tl.load(scale + modulation, mask=inside, other=0.0, eviction_policy="evict_last"))
            normal = normal + tl.load(shift + modulation, mask=inside, other=0.0, eviction_policy="evict_last")
        tl.store(normed + at, normal.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _normed_and_turned(at, weight, columns, inside, cos, sin, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    value = tl.load(at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    normal = value * tl.rsqrt(tl.sum(value * value, axis=0) / WIDTH + eps)
    normal = normal * tl.load(weight + columns, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    normal = normal.to(at.dtype.element_ty).to(tl.float32)
    one, other = tl.split(tl.reshape(normal, (BLOCK // 2, 2)))
    turned = tl.reshape(tl.join(-other, one), (BLOCK,))
    return (normal * cos + turned * sin).to(at.dtype.element_ty)


@triton.jit(do_not_specialize=["tokens"])
def _rms_rope(
    query,
    key,
    query_weight,
    key_weight,
    cosine,
    sine,
    query_stride,
    key_stride,
    cosine_stride,
    sine_stride,
    tokens,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    HEAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    token = row % tokens
    cos = tl.load(cosine + token * cosine_stride + columns % HEAD, mask=inside, other=0.0)
    sin = tl.load(sine + token * sine_stride + columns % HEAD, mask=inside, other=0.0)
    query_at = query + row * query_stride + columns
    turned = _normed_and_turned(query_at, query_weight, columns, inside, cos, sin, eps, WIDTH, BLOCK)
    tl.store(query_at, turned, mask=inside)
    key_at = key + row * key_stride + columns
    turned = _normed_and_turned(key_at, key_weight, columns, inside, cos, sin, eps, WIDTH, BLOCK)
    tl.store(key_at, turned, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _rms_silu(
    video, gamma, out, rows, factor, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (columns < WIDTH)
    at = row * WIDTH + columns
    value = tl.load(video + at, mask=inside, other=0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(value * value, axis=1))[:, None]
    normal = value / tl.maximum(length, 1e-12) * factor
    normal = normal * tl.load(gamma + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if SILU:
        normal = normal / (1.0 + tl.exp(-normal))
    tl.store(out + at, normal.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantize_rows(
    rows,
    out,
    scales,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    LEAST: tl.constexpr,
    SHARE: tl.constexpr,
    GELU: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < WIDTH
    at = row * WIDTH + columns
    value = tl.load(rows + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    if GELU:
        # 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
        value = value / (1.0 + tl.exp(-1.5957691216057308 * (value + 0.044715 * (value * value * value))))
        value = value.to(rows.dtype.element_ty).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), LEAST) * SHARE
    tl.store(scales + row, scale)
    factor = tl.div_rn(1.0, scale).to(rows.dtype.element_ty).to(tl.float32)
    value = (value * factor).to(rows.dtype.element_ty).to(tl.float32)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


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
        update = update.contiguous()
        total = torch.empty_like(hidden) if out is None else out
    normed = torch.empty_like(hidden) if norm else total
    modulation = next((each for each in (gate, scale) if each is not None), None)
    _launch(
        _add_norm,
        rows,
        hidden,
        *(hidden if each is None else each for each in (update, gate, scale, shift, weight, bias)),
        total,
        normed,
        eps,
        1 if modulation is None else rows // modulation.shape[0],
        0 if modulation is None else modulation.stride(0),
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ADD=update is not None,
        GATED=gate is not None,
        NORM=norm,
        AFFINE=weight is not None,
        MODULATED=scale is not None,
    )
    return total, normed


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
    rows, width = query.shape
    tokens, head = cosine.shape
    _launch(
        _rms_rope,
        rows,
        query,
        key,
        query_weight,
        key_weight,
        cosine,
        sine,
        query.stride(0),
        key.stride(0),
        cosine.stride(0),
        sine.stride(0),
        tokens,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        HEAD=head,
    )


def rms_silu(video: torch.Tensor, gamma: torch.Tensor, *, silu: bool, out: torch.Tensor | None = None) -> torch.Tensor:
    """See `Kernels.rms_silu`. Where the channels are not the last in memory, the reference computes it."""
    result = torch.empty_like(video) if out is None else out
    if not (_channels_last(video) and _channels_last(result)):
        return reference.rms_silu(video, gamma, silu=silu, out=out)
    width = video.shape[1]
    rows = video.numel() // width
    block = triton.next_power_of_2(width)
    tile = max(1, _TILE // block)
    _launch(
        _rms_silu,
        triton.cdiv(rows, tile),
        video,
        gamma,
        result,
        rows,
        width**0.5,
        WIDTH=width,
        BLOCK=block,
        ROWS=tile,
        SILU=silu,
    )
    return result


def quantize_rows(rows: torch.Tensor, *, gelu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """See `Kernels.quantize_rows`."""
    count, width = rows.shape
    rows = rows.contiguous()
    out = torch.empty_like(rows, dtype=torch.float8_e4m3fn)
    scales = torch.empty(count, 1, dtype=torch.float32, device=rows.device)
    _launch(
        _quantize_rows,
        count,
        rows,
        out,
        scales,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        LEAST=LEAST,
        SHARE=1 / FP8_LARGEST,
        GELU=gelu,
        num_warps=_WARPS if width <= _WIDE else _WIDE_WARPS,
    )
    return out, scales


def _channels_last(video: torch.Tensor) -> bool:
    """Whether the channels of one place after the other are one row of memory, also in a part of the frames."""
    moved = video.movedim(1, -1)
    return moved.is_contiguous()


def _launch(kernel: Any, programs: int, *arguments: Any, num_warps: int = _WARPS, **constants: Any) -> None:
    launch: Callable[..., Any] = kernel[(programs,)]
    try:
        with torch.cuda.device_of(arguments[0]):
            launch(*arguments, **constants, num_warps=num_warps, enable_fp_fusion=False)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as failure:
        lines = str(failure).splitlines() or [""]
        raise KernelFailed(f"{type(failure).__name__} ({lines[0][:160]})") from failure
