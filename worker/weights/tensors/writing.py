"""Writes safetensors files one tensor at a time, never holding more than one.

The library's own `save_file` needs a whole shard in memory; a conversion must fit into 12 GB beside whatever else runs.
The format is that of the safetensors README: 8 bytes of header length, a JSON header padded with spaces to 8 bytes,
then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from worker.weights.tensors.headers import DTYPES, StoredTensor, stored_tensors

__all__ = ["StoredTensor", "convert", "stored_tensors", "write_shard"]

_CODES = {dtype: code for code, dtype in DTYPES.items()}


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
