"""The header of a stranger's LoRA file, judged before a tensor of it is read."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from worker.base.errors import InputInvalid

# A LoRA of every layer of the A14B experts, with biases, has a header of 0.3 MB. The parser needs many times its size.
MAX_HEADER_BYTES = 8_000_000
# Factors, biases and alphas of every layer of both A14B experts are 5,000 tensors; a convolution has 5 dimensions.
# The time of reading them grows with the square of either.
MAX_TENSORS = 10_000
MAX_DIMENSIONS = 5
MAX_NAME = 500
MAX_SIZE = 2**31
# The library knows more: types of less than a byte, and scales for them, of which torch makes no sums.
_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I16", "I8", "U8"})
_REMEDY = "send the LoRA as a .safetensors file"
_KINDS = (
    (re.compile(rb"PK\x03\x04|\x80[\x02-\x05]"), "it is a PyTorch checkpoint (a pickle), which is never opened"),
    (re.compile(rb"\s*<"), "it is a web page: use the address of the file itself"),
    (re.compile(rb"GGUF"), "it is a GGUF file"),
)


def check_safetensors(file: Path, path: str) -> dict[str, str]:
    """Read the header of a file; returns its metadata.

    Every tensor is within the file, no byte is left over, and no tensor is of a type or shape that no LoRA has. Raises
    InputInvalid for the field `path`, which says what to send, and OSError. The tensors themselves are not read.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(64)
        header_bytes = int.from_bytes(start[:8], "little")
        # The brace first: the length of a good header may look like the first bytes of a pickle.
        if start[8:9] != b"{" or header_bytes > min(MAX_HEADER_BYTES, size - 8):
            kind = next((what for pattern, what in _KINDS if pattern.match(start)), "or only the beginning of one")
            raise InputInvalid(f"not a safetensors file, {kind}: {_REMEDY}", path=path)
        opened.seek(8)
        header = opened.read(header_bytes)
    _check_count(header.count(b'"data_offsets"'), path)  # parsing is what takes the time
    try:
        with safe_open(file, framework="numpy"):
            pass
    except SafetensorError as failure:
        raise InputInvalid(f"a damaged safetensors file: {_REMEDY} that is whole", path=path) from failure
    tensors = json.loads(header)
    metadata: dict[str, str] = tensors.pop("__metadata__", None) or {}
    if not tensors:
        raise InputInvalid("the file holds no tensors: send a LoRA", path=path)
    _check_count(len(tensors), path)
    for key, tensor in tensors.items():
        if len(key) > MAX_NAME:
            raise InputInvalid(f"the name {key[:100]}... has more than {MAX_NAME} characters: send a LoRA", path=path)
        if reason := _unusable(tensor["dtype"], tensor["shape"]):
            raise InputInvalid(f"the tensor {key[:100]} {reason}: send a LoRA", path=path)
    return metadata


def _check_count(tensors: int, path: str) -> None:
    if tensors > MAX_TENSORS:
        raise InputInvalid(f"the file holds {tensors} tensors, a LoRA at most {MAX_TENSORS}", path=path)


def _unusable(dtype: str, shape: list[int]) -> str | None:
    if dtype not in _DTYPES:
        return f"is of the type {dtype}, which no LoRA here has"
    if len(shape) > MAX_DIMENSIONS:
        return f"has {len(shape)} dimensions, where {MAX_DIMENSIONS} are the most"
    if any(size > MAX_SIZE for size in shape):  # beside a 0 the library lets it pass
        return "has a shape that no tensor has"
    return None
