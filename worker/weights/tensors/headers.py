"""The header of a safetensors file, judged whole before a byte of its tensors is read.

The format is that of the safetensors README: 8 bytes of header length, a JSON header, then the tensors without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worker.base.errors import ModelUnavailable

# The library's own bound; the header of an A14B expert has 0.2 MB.
MAX_HEADER_BYTES = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies: `offset` bytes into `path`."""

    key: str
    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    def load(self) -> torch.Tensor:
        """Read the tensor into memory of its own. Raises OSError where the file ends early."""
        content = bytearray(self.nbytes)
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(content) != len(content):
                raise OSError(f"{self.path.name} ends within the tensor {self.key}")
        return torch.frombuffer(content, dtype=self.dtype).reshape(self.shape)


class _Damaged(Exception):
    """What is wrong with a header."""


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, in the order in which they lie.

    Every tensor lies within the file, none overlaps another, and no byte is left over. Raises ModelUnavailable for a
    file that is not like that or is not there, OSError where it cannot be read.
    """
    try:
        return _judged(path)
    except _Damaged as failure:
        raise unusable(path, str(failure)) from failure
    except FileNotFoundError as failure:
        raise unusable(path, "it is missing") from failure


def unusable(path: Path, reason: str) -> ModelUnavailable:
    """The error for a file of a model that cannot be used as it is."""
    return ModelUnavailable(
        f"{path.parent.name}/{path.name}: {reason}: remove the model from the cache so that it is fetched again"
    )


def _judged(path: Path) -> tuple[StoredTensor, ...]:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise _Damaged("it is truncated, or its header is damaged")
        text = file.read(length)
    data_begins = 8 + length
    entries = _entries(text)
    tensors: list[StoredTensor] = []
    end = 0
    for key, (dtype, shape, begin, finish) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise _Damaged(f"the header leaves a gap before the tensor {key}, or lays it over another")
        if finish - begin != math.prod(shape) * dtype.itemsize:
            raise _Damaged(f"the tensor {key} has another size than its shape says")
        tensors.append(StoredTensor(key, path, data_begins + begin, dtype, shape))
        end = finish
    if data_begins + end != size:
        raise _Damaged(f"it has {size} bytes where its header says {data_begins + end}")
    return tuple(tensors)


def _entries(text: bytes) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
    try:
        header = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as failure:
        raise _Damaged("its header is not JSON") from failure
    if not isinstance(header, dict):
        raise _Damaged("its header is not a JSON object")
    header.pop("__metadata__", None)
    return {key: _entry(key, entry) for key, entry in header.items()}


def _entry(key: str, entry: Any) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _Damaged(f"the header does not describe the tensor {key}")
    dtype, shape, offsets = DTYPES.get(str(entry["dtype"])), entry["shape"], entry["data_offsets"]
    if dtype is None:
        raise _Damaged(f"the tensor {key} is of the type {entry['dtype']}, which no model here uses")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _Damaged(f"the header does not say where the tensor {key} lies")
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _without_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Raises _Damaged for a name that comes twice: which of the two counts would be a guess."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Damaged(f"its header names {key[:100]} twice")
        found[key] = value
    return found
