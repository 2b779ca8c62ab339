"""Quantised linear layers on the matrix units, against float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.engine import kernels
from worker.engine.kernels import probe, reference
from worker.engine.models.precision import Format, ScaledLinear, quantize, quantized_by

GPU = torch.device("cuda", 0)
TOLERANCE: dict[Format, float] = {"fp8": 0.05, "int8": 0.02}


def needs(format: Format) -> None:
    if format == "fp8" and torch.cuda.get_device_capability(GPU) < (8, 9):
        pytest.skip("this GPU has no fp8")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [17, 512, 20_001])
@pytest.mark.parametrize("format", ["fp8", "int8"])
@torch.no_grad()
def test_products_by_rows_are_near_the_exact_ones(format: Format, rows: int, bias: bool) -> None:
    needs(format)
    torch.manual_seed(0)
    linear = nn.Linear(5120, 5120, bias=bias, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    given = torch.randn(1, rows, 5120, device=GPU, dtype=torch.bfloat16)
    given[0, 3] *= 1000  # a token far larger than the others does not drown them
    exact = nn.functional.linear(
        given.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float()
    )
    found = ScaledLinear.of(linear, format, "quantized")(given)
    assert (found.shape, found.dtype) == (exact.shape, torch.bfloat16)
    others = [*range(3), *range(4, rows)]
    for part in ([3], others):
        error = (found[0, part].float() - exact[0, part]).norm() / exact[0, part].norm()
        assert float(error) < TOLERANCE[format]


@torch.no_grad()
def test_weights_prepared_as_fp8_compute_like_their_bf16_twins() -> None:
    needs("fp8")
    linear = nn.Linear(512, 1024, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    rows = torch.randn(64, 512, device=GPU, dtype=torch.bfloat16)
    found = ScaledLinear.of(linear, "fp8", "quantized")(rows)
    linear.weight.data = linear.weight.data.to(torch.bfloat16)
    assert torch.equal(found, ScaledLinear.of(linear, "fp8", "quantized")(rows))


@torch.no_grad()
def test_fast_accumulation_adds_less_than_fp8_itself() -> None:
    needs("fp8")
    rows, weight = (torch.randn(count, 13824, device=GPU, dtype=torch.bfloat16) for count in (2048, 5120))
    (left, left_scale), (right, right_scale) = quantize(rows, "fp8"), quantize(weight, "fp8")
    fast, exact = (
        torch._scaled_mm(
            left,
            right.t(),
            scale_a=left_scale,
            scale_b=right_scale.t(),
            out_dtype=torch.bfloat16,
            use_fast_accum=is_fast,
        ).float()
        for is_fast in (True, False)
    )
    assert float((fast - exact).norm() / exact.norm()) < 0.02


@torch.no_grad()
def test_bias_and_output_in_the_product_change_nothing() -> None:
    needs("fp8")
    linear = nn.Linear(5120, 1024, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    layer = ScaledLinear.of(linear, "fp8", "quantized")
    rows = torch.randn(20_000, 5120, device=GPU, dtype=torch.bfloat16)
    found = layer(rows)  # in two parts, each into its rows of the result
    layer.bias = None
    assert float((found.float() - linear.bias.float() - layer(rows).float()).abs().max()) <= 0.07


@pytest.mark.parametrize(("count", "width"), [(32_760, 5120), (32_760, 13_824), (7, 1536)])
@torch.no_grad()
def test_the_kernel_quantises_rows_to_the_bits_of_torch(count: int, width: int) -> None:
    needs("fp8")
    torch.manual_seed(0)
    rows = torch.randn(count, width, device=GPU, dtype=torch.bfloat16) * torch.rand(count, 1, device=GPU).bfloat16()
    rows[3] = 0
    by = kernels.of(GPU)
    (found, scale), (wanted, wanted_scale) = by.quantize_rows(rows), reference.quantize_rows(rows)
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(found.float(), wanted.float())
    (found, scale), (wanted, wanted_scale) = (each.quantize_rows(rows, gelu=True) for each in (by, reference))
    exact = wanted.float() * wanted_scale
    assert float((found.float() * scale - exact).norm() / exact.norm()) <= probe.TOLERANCE


@torch.no_grad()
def test_products_of_rows_that_the_kernel_quantised_are_as_near_the_exact_ones() -> None:
    needs("fp8")
    torch.manual_seed(0)
    linear = nn.Linear(13_824, 5120, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    layer = ScaledLinear.of(linear, "fp8", "quantized")
    rows = torch.randn(1, 20_001, 13_824, device=GPU, dtype=torch.bfloat16)
    for call, given in ((layer, rows), (layer.after_gelu, nn.functional.gelu(rows, approximate="tanh"))):
        exact = nn.functional.linear(given.float(), linear.weight.float(), linear.bias.float())
        plain = call(rows)
        with quantized_by(kernels.of(GPU)):
            found = call(rows)
        assert (found.shape, found.dtype) == (plain.shape, torch.bfloat16)
        off, before = (float((each.float() - exact).norm() / exact.norm()) for each in (found, plain))
        assert off <= 1.01 * before < TOLERANCE["fp8"]
