"""LyCORIS' LoKr and LoHa: a change of a linear layer as the Kronecker or the Hadamard product of two matrices.

    LoKr  scale * kron(first, second)      each a matrix of its own or a product of two factors
    LoHa  scale * (first * second)         each a product of two factors, multiplied element by element

scale is alpha / rank, and 1 where neither matrix has a rank (https://github.com/KohakuBlueleaf/LyCORIS). LoKr is
computed by its factors and never as a whole. LoHa has no such way: its change, as large as the weight of the layer, is
there for the moment of each product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from worker.base.errors import InputInvalid, Unsupported

Matrix = tuple[torch.Tensor, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A change of a linear layer. A matrix is one tensor [out, in], or two factors [out, rank] and [rank, in]."""

    form: str
    first: Matrix
    second: Matrix
    scale: float
    keys: tuple[str, ...]

    @property
    def rank(self) -> int | None:
        return next((matrix[1].shape[0] for matrix in (self.first, self.second) if len(matrix) == 2), None)

    @property
    def shape(self) -> tuple[int, int]:
        """[out, in] of the whole change."""
        (out, inner), (out_2, inner_2) = _shape(self.first), _shape(self.second)
        return (out * out_2, inner * inner_2) if self.form == "LoKr" else (out, inner)


class WithProduct(nn.Module):
    """A linear layer and a change beside it. The factors are parameters, so that they come and go with the weights."""

    def __init__(self, base_layer: nn.Module, product: Product, device: torch.device, dtype: torch.dtype) -> None:
        """Takes copies of the factors, in `dtype` on `device`."""
        super().__init__()
        self.base_layer = base_layer
        self._is_kron = product.form == "LoKr"
        for name, matrix in (("first", product.first), ("second", product.second)):
            held = [tensor.to(device, torch.float32, copy=True) for tensor in matrix]
            if self._is_kron and len(held) == 2 and held[0].shape[1] > min(_shape(held)):
                held = [held[0] @ held[1]]  # smaller than its factors, and so is what comes between them
            if name == "first":
                held[0] *= product.scale
            for number, tensor in enumerate(held):
                self.register_parameter(f"{name}_{number}", nn.Parameter(tensor.to(dtype), requires_grad=False))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        first, second = self._matrix("first"), self._matrix("second")
        rows = input.to(first[0].dtype)
        change = _by_factors(rows, first, second) if self._is_kron else functional.linear(rows, _whole(first, second))
        output: torch.Tensor = self.base_layer(input)
        return output + change.to(output.dtype)

    def _matrix(self, name: str) -> Matrix:
        return tuple(factor for key, factor in self._parameters.items() if factor is not None and key.startswith(name))


def _by_factors(rows: torch.Tensor, first: Matrix, second: Matrix) -> torch.Tensor:
    """kron(first, second) of [..., in]. What comes in between is no larger than the larger of input and output."""
    (out, inner), (out_2, inner_2) = _shape(first), _shape(second)
    grid = rows.reshape(*rows.shape[:-1], inner, inner_2)
    if inner * out_2 <= out * inner_2:
        return _through(_through(grid, second).transpose(-1, -2), first).transpose(-1, -2).flatten(-2)
    return _through(_through(grid.transpose(-1, -2), first).transpose(-1, -2), second).flatten(-2)


def _whole(first: Matrix, second: Matrix) -> torch.Tensor:
    """The change of a LoHa, [out, in]."""
    return (first[0] @ first[1]).mul_(second[0] @ second[1])


def product_of(parts: Mapping[str, torch.Tensor], keys: Mapping[str, str], path: str) -> Product | None:
    """The LoKr or LoHa of one layer; None where there is none, or parts of it are missing.

    Raises Unsupported for one of a convolution, InputInvalid for factors that do not fit together.
    """
    for form, prefix in (("LoKr", "lokr"), ("LoHa", "hada")):
        names = [_names(parts, f"{prefix}_w{number}") for number in (1, 2)]
        if not all(names):
            continue
        used = (*names[0], *names[1])
        if any(parts[name].ndim != 2 for name in used):
            message = f"{keys[used[0]][:100]} is a {form} of a convolution: send one of linear layers only, or a LoRA"
            raise Unsupported(message, path=path)
        first, second = (tuple(parts[name] for name in each) for each in names)
        fits = all(matrix[0].shape[1] == matrix[-1].shape[0] > 0 for matrix in (first, second) if len(matrix) == 2)
        if not fits or (form == "LoHa" and _shape(first) != _shape(second)):
            message = f"the factors {keys[used[0]][:100]} and its counterparts do not fit together"
            raise InputInvalid(message, path=path)
        return Product(form, first, second, 1.0, tuple(keys[name] for name in used))
    return None


def _names(parts: Mapping[str, torch.Tensor], name: str) -> tuple[str, ...]:
    if name in parts:
        return (name,)
    pair = (f"{name}_a", f"{name}_b")
    return pair if all(each in parts for each in pair) else ()


def _shape(matrix: Sequence[torch.Tensor]) -> tuple[int, int]:
    return matrix[0].shape[0], matrix[-1].shape[1]


def _through(rows: torch.Tensor, matrix: Sequence[torch.Tensor]) -> torch.Tensor:
    """[..., in] to [..., out], by the last factor first."""
    for factor in reversed(matrix):
        rows = functional.linear(rows, factor)
    return rows
