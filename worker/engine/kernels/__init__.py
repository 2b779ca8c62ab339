"""Fused elementwise kernels: `reference` in plain torch for every device, `launch` in Triton for CUDA.

Both have the functions of `Kernels`, with the same formulas and the same roundings. `of` returns what a device can run.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch

# The largest number of float8_e4m3fn.
FP8_LARGEST = 448.0
# The largest |x| that a row of zeros is given: its scale has a reciprocal in every dtype.
LEAST = 1e-20


class KernelFailed(RuntimeError):
    """A kernel could not be compiled or launched. Its outputs hold nothing; its inputs are as they were."""


class Kernels(Protocol):
    """All compute in float32 and round once to the dtype of their output, but where a formula says otherwise."""

    def add_norm(
        self,
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
        """`hidden + update * gate`, and its layer norm, scaled and shifted: (sum, normed); each [rows, width].

        hidden, update: contiguous [rows, width]; without an update the sum is `hidden` itself. gate, scale and shift:
        float32 [m, width], each row of them for rows / m rows one after the other; all with the same row stride.
        normed: layer_norm(sum) * weight + bias (where given) * (1 + scale) + shift (where given). norm=False: no norm,
        and the second result is the sum. The sum goes into `out`, which may be `hidden`; None: into a new tensor.
        """

    def rms_rope(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        query_weight: torch.Tensor,
        key_weight: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        *,
        eps: float,
    ) -> None:
        """RMS norm over the width, rounded, then rotary embedding of each head, in place.

        query, key: [rows, width] with contiguous columns; cosine, sine: float32 [tokens, head] with contiguous columns,
        rows = batch * tokens; both numbers of a pair have the same angle (Diffusers' `repeat_interleave_real`).
        """

    def rms_silu(
        self, video: torch.Tensor, gamma: torch.Tensor, *, silu: bool, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The Wan VAE's norm over channels, [1, C, T, H, W] or [N, C, H, W], and SiLU, into `out` or a new tensor.

        gamma: [C, 1, 1(, 1)]. The result is x / max(||x||, 1e-12) * sqrt(C) * gamma.
        """

    def quantize_rows(self, rows: torch.Tensor, *, gelu: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Contiguous `rows` [n, width], or their GELU (tanh), in float8_e4m3fn [n, width], and float32 scales [n, 1].

        scale: the largest |x| of the row / 448. Each x, rounded to the rows' dtype behind GELU, is multiplied by
        1 / scale in that dtype: what rounding takes past 448 is at most 450, which fp8 rounds to 448 again.
        """


def of(device: torch.device) -> Kernels:
    """The Triton kernels, for a CUDA `device`. Raises KernelFailed with the reason where they cannot run there."""
    if device.type != "cuda":
        raise KernelFailed("Triton needs a CUDA device")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise KernelFailed("the kernels need compute capability 8.0")
    try:
        from worker.engine.kernels import launch
    except Exception as failure:
        raise KernelFailed(f"Triton cannot be loaded ({failure})") from failure
    return cast("Kernels", launch)
