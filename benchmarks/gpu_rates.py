"""What the chip can do: its matrix rates at the model's shapes, and the least time that a row's work takes at them.

The operations are those of `worker.request.plan.duration`, which a test holds to torch's own count. Rates are measured
in the same run, with random numbers: a rate on zeros is one that no model reaches.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from benchmarks.gpu_models import Scale
from worker.engine.models import precision
from worker.request.plan import duration
from worker.request.plan.gpus import BF16_SINCE, FP8_SINCE

_CALLS = 10
_TIMES = 5


@dataclass(frozen=True)
class Rates:
    """Operations a second, the best of the model's shapes: in the experts' dtype, quantised, and in the VAE's.

    `quantized` is None where the GPU has no such units; `named` says which type each of them is.
    """

    exact: float
    quantized: float | None
    vae: float
    named: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> str:
        rates = {"exact": self.exact, "quantized": self.quantized, "vae": self.vae}
        found = [f"{self.named[name]} {rate / 1e12:.3g}" for name, rate in rates.items() if rate is not None]
        return f"matrix rates, TFLOP/s: {', '.join(found)}"


def measure(scale: Scale, device: torch.device) -> Rates:
    """On the shapes of the blocks' linear layers: tokens (a multiple of 16), width and feed-forward width."""
    rows, dim, wide = scale.size.tokens(scale.shape) // 16 * 16, scale.size.dim, scale.size.ffn_dim
    shapes = ((rows, dim, dim), (rows, dim, wide), (rows, wide, dim))
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    format = _format(torch.cuda.get_device_capability(device) if on_gpu else None)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32, as cuDNN computes convolutions of float32
    try:
        vae = max(_rate(_plain(*shape, torch.float32, device), shape, device) for shape in shapes)
    finally:
        torch.set_float32_matmul_precision(before)
    quantized = None
    if format is not None:
        quantized = max(_rate(_quantized(*shape, format, device), shape, device) for shape in shapes)
    exact = max(_rate(_plain(*shape, dtype, device), shape, device) for shape in shapes)
    named = {
        "exact": str(dtype).removeprefix("torch."),
        "quantized": "none" if format is None else format,
        "vae": "TF32" if on_gpu else "float32",
    }
    return Rates(exact, quantized, vae, named)


def denoise_floor_s(scale: Scale, rates: Rates, *, forwards: int, quantized: bool) -> float:
    """Seconds of `forwards` passes at the measured rates; attention in the experts' own dtype in every case."""
    size, shape = scale.size, scale.shape
    whole = duration.forward_flop(size, shape)
    linear = whole - _attention_flop(scale)
    rate = rates.quantized if quantized and rates.quantized is not None else rates.exact
    return forwards * (linear / rate + (whole - linear) / rates.exact)


def decode_floor_s(scale: Scale, rates: Rates) -> float | None:
    """None for the demo model's VAE, whose operations nobody counted."""
    return duration.decode_flop(scale.spec, scale.shape) / rates.vae if scale.is_published else None


def encode_floor_s(scale: Scale, rates: Rates) -> float | None:
    """Of a conditioning video; None for the demo model's VAE."""
    return duration.image_encode_flop(scale.spec, scale.shape) / rates.vae if scale.is_published else None


def _format(capability: tuple[int, int] | None) -> precision.Format | None:
    """What the matrix units multiply; a CPU (None) takes both formats."""
    if capability is None or capability >= FP8_SINCE:
        return "fp8"
    return "int8" if capability >= BF16_SINCE else None


def _attention_flop(scale: Scale) -> float:
    """Scores and their product with the values, of a pass: over the tokens themselves, and over the text."""
    tokens = scale.size.tokens(scale.shape)
    return float(scale.size.layers * 4 * tokens * (tokens + duration.TEXT_TOKENS) * scale.size.dim)


def _plain(rows: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    one = torch.randn(rows, inner, device=device).to(dtype)
    other = torch.randn(outer, inner, device=device).to(dtype)
    return lambda: torch.mm(one, other.t())


def _quantized(
    rows: int, inner: int, outer: int, format: precision.Format, device: torch.device
) -> Callable[[], object]:
    """The bare product, without the scaling of rows that a real layer does: the most that the units give."""
    one, _ = precision.quantize(torch.randn(rows, inner, device=device), format)
    other, _ = precision.quantize(torch.randn(outer, inner, device=device), format)
    if format == "int8":
        return lambda: torch._int_mm(one, other.t())
    scale = torch.ones((), device=device)
    return lambda: torch._scaled_mm(one, other.t(), scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16)


def _rate(product: Callable[[], object], shape: tuple[int, int, int], device: torch.device) -> float:
    """Median of `_TIMES`, each over `_CALLS` products, after one that warms up."""
    seconds = []
    for _ in range(_TIMES + 1):
        began = _now(device)
        for _ in range(_CALLS):
            product()
        seconds.append((_now(device) - began) / _CALLS)
    return 2 * shape[0] * shape[1] * shape[2] / statistics.median(seconds[1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
