"""Safetensors files one tensor at a time: a reader and a writer that never hold more than one.

The library's own `save_file` needs a whole shard in memory, and its memory-mapped reader counts a whole shard as
resident; a conversion must fit into 12 GB beside whatever else runs. The format is that of the safetensors
README: 8 bytes of header length, a JSON header padded with spaces to 8 bytes, then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

_TORCH = {
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
_CODES = {dtype: code for code, dtype in _TORCH.items()}


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

    def load(self) -> torch.Tensor:
        """Read the tensor into memory of its own. Raises OSError where the file ends early."""
        content = bytearray(self.elements * self.dtype.itemsize)
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if file.readinto(content) != len(content):
                raise OSError(f"{self.path.name} ends within the tensor {self.key}")
        return torch.frombuffer(content, dtype=self.dtype).reshape(self.shape)


def stored_tensors(path: Path) -> Iterator[StoredTensor]:
    """The tensors of a safetensors file, in the order in which they lie. Raises KeyError for an unknown dtype."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        offset = 8 + header_bytes + entry["data_offsets"][0]
        yield StoredTensor(key, path, offset, _TORCH[entry["dtype"]], tuple(entry["shape"]))


def write_shard(path: Path, tensors: Sequence[StoredTensor], dtypes: Mapping[str, torch.dtype]) -> str:
    """Write the tensors, converted to `dtypes`, as one safetensors file; answers its sha256. Raises OSError.

    Wide types come first, so that every tensor is aligned to its own size, as the library requires of its writers.
    """
    ordered = sorted(tensors, key=lambda tensor: (-dtypes[tensor.key].itemsize, tensor.key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.elements * dtypes[tensor.key].itemsize
        dtype = _CODES[dtypes[tensor.key]]
        header[tensor.key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    hasher = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(text).to_bytes(8, "little"), text):
            hasher.update(piece)
            file.write(piece)
        for tensor in ordered:
            content = _bytes(convert(tensor.load(), dtypes[tensor.key]))
            hasher.update(content)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()


def convert(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The tensor in another type. float8 goes by way of bf16, as casting a bf16 model layer by layer does.

    Values beyond the range of float8_e4m3fn become its largest, where a plain cast would make them NaN.
    """
    if tensor.dtype == dtype:
        return tensor
    if dtype == torch.float8_e4m3fn:
        limit = torch.finfo(dtype).max
        return tensor.to(torch.bfloat16).clamp(-limit, limit).to(dtype)
    return tensor.to(dtype)


def _bytes(tensor: torch.Tensor) -> memoryview:
    array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return array.data
