"""Quantised linear layers against the exact ones, in both formats and both arithmetics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from worker.engine.models import precision
from worker.engine.models.precision import Arithmetic, Format, ScaledLinear

# Rounding: 3 mantissa bits give a relative error up to 2^-4, and 2.6% in the root mean square; int8 of a normal row
# with 4 sigma as its largest value 1 / 127 * 4 / sqrt(12) = 0.9%.
TOLERANCE: dict[tuple[Format, Arithmetic], float] = {
    ("fp8", "cast"): 0.035,
    ("fp8", "quantized"): 0.05,
    ("int8", "cast"): 0.015,
    ("int8", "quantized"): 0.02,
}


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


@pytest.fixture
def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 96).to(torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("format", "arithmetic"), list(TOLERANCE))
def test_the_product_is_near_the_exact_one(
    linear: nn.Linear, format: Format, arithmetic: Arithmetic, dtype: torch.dtype
) -> None:
    linear = linear.to(dtype)
    rows = torch.randn(2, 40, 128, dtype=dtype)
    twin = ScaledLinear.of(linear, format, arithmetic)
    found = twin(rows)
    assert found.shape == (2, 40, 96)
    assert found.dtype == dtype
    error = relative_error(found, linear(rows))
    assert 0 < error < TOLERANCE[format, arithmetic]
    assert twin.weight.dtype == precision.DTYPES[format]
    assert twin.weight.element_size() == 1


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_quantized_arithmetic_differs_from_casting(linear: nn.Linear, format: Format) -> None:
    rows = torch.randn(40, 128, dtype=torch.bfloat16)
    twin = ScaledLinear.of(linear, format, "quantized")
    quantized = twin(rows)
    twin.arithmetic = "cast"
    assert not torch.equal(quantized, twin(rows))
    twin.arithmetic = "quantized"
    assert torch.equal(twin(rows), quantized)  # as before


def test_the_layers_that_compute_are_found() -> None:
    module = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 16)), nn.Linear(16, 12))
    precision.replace_linears(module, "fp8", "quantized")
    assert precision.computing(module) == [module[0], module[1][0]]  # 12 is no multiple of 16: cast


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_a_token_far_larger_than_the_others_does_not_drown_them(linear: nn.Linear, format: Format) -> None:
    rows = torch.randn(40, 128, dtype=torch.bfloat16)
    rows[7] *= 1000
    found = ScaledLinear.of(linear, format, "quantized")(rows)
    others = [index for index in range(40) if index != 7]
    assert relative_error(found[others], linear(rows)[others]) < TOLERANCE[format, "quantized"]


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_a_row_of_zeros_stays_zero(linear: nn.Linear, format: Format) -> None:
    rows = torch.zeros(40, 128, dtype=torch.bfloat16)
    assert torch.equal(ScaledLinear.of(linear, format, "quantized")(rows), linear.bias.expand(40, -1))


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_sizes_that_the_matrix_units_do_not_take_are_cast(format: Format) -> None:
    odd = nn.Linear(20, 12).to(torch.bfloat16).requires_grad_(False)
    twin = ScaledLinear.of(odd, format, "quantized")
    assert twin.arithmetic == "cast"
    rows = torch.randn(40, 20, dtype=torch.bfloat16)
    assert relative_error(twin(rows), odd(rows)) < TOLERANCE[format, "cast"]


@pytest.mark.parametrize("rows", [1, 16, 17])
def test_few_rows_work(linear: nn.Linear, rows: int) -> None:
    """The time embedding is one row; int8's matrix units ask for more than 16."""
    given = torch.randn(rows, 128, dtype=torch.bfloat16)
    for format in ("fp8", "int8"):
        twin = ScaledLinear.of(linear, format, "quantized")  # type: ignore[arg-type]
        assert relative_error(twin(given), linear(given)) < 0.06


@pytest.mark.parametrize(("rows", "parts"), [(39, [39]), (40, [20, 20]), (79, [27, 26, 26])])
@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_many_rows_are_quantised_in_parts_with_the_same_result(
    linear: nn.Linear, format: Format, rows: int, parts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = torch.randn(rows, 128, dtype=torch.bfloat16)
    twin = ScaledLinear.of(linear, format, "quantized")
    whole = twin(given)
    seen: list[int] = []
    quantize = precision.quantize

    def watched(some: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(some))
        return quantize(some, format)

    monkeypatch.setattr(precision, "LEAST_ROWS", 20)
    monkeypatch.setattr(precision, "quantize", watched)
    assert torch.equal(twin(given), whole)
    assert seen == parts


def test_a_layer_without_bias() -> None:
    plain = nn.Linear(32, 32, bias=False).requires_grad_(False)
    rows = torch.randn(20, 32)
    assert relative_error(ScaledLinear.of(plain, "int8", "quantized")(rows), plain(rows)) < 0.03


def test_every_linear_layer_is_replaced_once() -> None:
    module = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Sequential(nn.Linear(32, 16)))
    precision.replace_linears(module, "fp8", "cast")
    first, inner = module[0], module[2][0]
    assert isinstance(first, ScaledLinear)
    assert isinstance(inner, ScaledLinear)
    precision.replace_linears(module, "fp8", "cast")
    assert module[0] is first


@pytest.mark.parametrize("format", ["fp8", "int8"])
def test_weights_that_were_prepared_as_fp8_are_quantised_as_their_bf16_twins(linear: nn.Linear, format: Format) -> None:
    linear.weight.data = linear.weight.data.to(torch.float8_e4m3fn)
    found = ScaledLinear.of(linear, format, "quantized")
    linear.weight.data = linear.weight.data.to(torch.bfloat16)
    wanted = ScaledLinear.of(linear, format, "quantized")
    assert torch.equal(found.weight.view(torch.uint8), wanted.weight.view(torch.uint8))
    assert torch.equal(found.scale, wanted.scale)


class Attention(nn.Module):
    """The three layers of an attention, as Diffusers names and calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(64, 32).to(torch.bfloat16) for _ in range(3))

    def forward(self, queries: torch.Tensor, others: torch.Tensor) -> list[torch.Tensor]:
        return [self.to_q(queries), self.to_k(others), self.to_v(others)]


@torch.no_grad()
def test_q_k_and_v_quantise_their_input_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Attention().requires_grad_(False)
    exact = copy.deepcopy(module)
    precision.replace_linears(module, "fp8", "quantized")
    calls: list[int] = []
    quantize = precision.quantize

    def counted(some: torch.Tensor, format: Format) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(some))
        return quantize(some, format)

    monkeypatch.setattr(precision, "quantize", counted)
    for seed in range(2):  # the second input may lie where the first did
        rows = torch.randn(1, 40, 64, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
        for found, wanted in zip(module(rows, rows), exact(rows, rows), strict=True):
            assert relative_error(found, wanted) < TOLERANCE["fp8", "quantized"]
    assert calls == [40] * 2
    others = torch.randn(1, 24, 64).to(torch.bfloat16)
    calls.clear()
    for found, wanted in zip(module(rows, others), exact(rows, others), strict=True):
        assert relative_error(found, wanted) < TOLERANCE["fp8", "quantized"]
    assert calls == [40, 24]
    shared = module.to_q.shared
    assert shared is not None
    assert shared._input is None  # nothing is kept behind the last of them


@torch.no_grad()
def test_a_changed_input_is_quantised_anew_after_a_pass_that_failed() -> None:
    module = Attention().requires_grad_(False)
    precision.replace_linears(module, "fp8", "quantized")
    rows = torch.randn(40, 64).to(torch.bfloat16)
    module.to_q(rows)  # and no further
    rows.mul_(-1)
    wanted = ScaledLinear.forward(copy.copy(module.to_q), rows.clone())
    assert torch.equal(module.to_q(rows), wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_largest_of_a_row_never_leaves_fp8(dtype: torch.dtype) -> None:
    """Beyond 464 a number becomes NaN, not 448."""
    source = torch.Generator().manual_seed(0)
    rows = (torch.randn(200_000, 8, generator=source) * torch.rand(200_000, 1, generator=source) * 100).to(dtype)
    found, scale = precision.quantize(rows, "fp8")
    assert bool(torch.isfinite(found.float()).all())
    assert float(found.float().abs().amax(1).min()) >= 416  # the largest is 448, or rounded to the number below
    assert torch.equal(scale, rows.abs().amax(1, keepdim=True).float() * (1 / 448))


def test_int8_is_the_nearest_of_its_steps() -> None:
    rows = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    levels, scale = precision.quantize(rows, "int8")
    assert float(((levels * scale - rows) / scale).abs().max()) <= 0.5 + 1e-4
