"""Writes shards of safetensors files, each of which is held in memory whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from worker.base.files import replacing
from worker.weights.tensors.headers import StoredTensor


def write_shard(path: Path, tensors: Sequence[StoredTensor], dtypes: Mapping[str, torch.dtype]) -> None:
    """Write the tensors, converted to `dtypes`, as one safetensors file. Raises OSError."""
    with replacing(path) as fresh:
        fresh.touch()
        mode = fresh.stat().st_mode  # as the umask says: the library's files are for their owner alone
        converted = {tensor.key: convert(tensor.load(), dtypes[tensor.key]) for tensor in tensors}
        save_file(converted, fresh, metadata={"format": "pt"})
        fresh.chmod(mode)


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
