"""The tensors of a safetensors file by its header, which the library judges before a byte of them is read."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from worker.base.errors import ModelUnavailable

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
    """Where a tensor is stored: `offset` bytes into `path`."""

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


def stored_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, in the order in which they are stored.

    The library judges the header: it has 100 MB at most, every tensor is within the file, none overlaps another, no
    byte is left over. Raises ModelUnavailable for a file that is not like that or is missing, OSError where it cannot
    be read.
    """
    try:
        with safe_open(path, framework="numpy"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except SafetensorError as failure:
        raise unusable(path, f"it is truncated, or its header is damaged ({failure})") from failure
    except FileNotFoundError as failure:
        raise unusable(path, "it is missing") from failure
    header.pop("__metadata__", None)
    tensors = []
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise unusable(path, f"the tensor {key} is of the type {entry['dtype']}, which no model here uses")
        tensors.append(StoredTensor(key, path, 8 + length + entry["data_offsets"][0], dtype, tuple(entry["shape"])))
    return tuple(tensors)


def unusable(path: Path, reason: str) -> ModelUnavailable:
    """The error for a file of a model that cannot be used as it is."""
    return ModelUnavailable(
        f"{path.parent.name}/{path.name}: {reason}: remove the model from the cache so that it is fetched again"
    )
