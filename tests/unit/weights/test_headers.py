"""Safetensors headers: good ones as the library reads them, bad ones refused before a tensor is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from worker.base.errors import ModelUnavailable
from worker.weights.tensors.headers import stored_tensors

TWO: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [3], "data_offsets": [8, 14]},
}
DATA = bytes(range(14))


def written(tmp_path: Path, header: object, data: bytes = DATA, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "transformer" / "x.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_what_the_library_writes_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    wanted = {
        "z": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "a": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
        "q": torch.arange(5, dtype=torch.int8),
        "f": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    }
    save_file(wanted, path, metadata={"format": "pt"})
    found = {tensor.key: tensor.load() for tensor in stored_tensors(path)}
    with safe_open(path, framework="pt") as library:
        assert found.keys() == set(library.keys())
        for key in found:
            theirs = library.get_tensor(key)
            assert (found[key].dtype, found[key].shape) == (theirs.dtype, theirs.shape)
            assert found[key].double().equal(theirs.double())


def changed(key: str, **fields: Any) -> dict[str, Any]:
    return {**TWO, key: {**TWO[key], **fields}}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"a": 1, "a": 1}',
        {"a": []},
        changed("b", dtype="F99"),
        changed("b", shape=[-3]),
        changed("b", shape=[True, 3]),
        changed("b", data_offsets=[8]),
        changed("b", data_offsets=[8, 16]),
        changed("b", shape=[2**62, 2**62]),
        changed("b", data_offsets=[9, 15]),
        changed("b", data_offsets=[7, 13]),
        {"a": TWO["a"]},
    ],
)
def test_a_header_that_is_not_true_is_refused(tmp_path: Path, header: object) -> None:
    path = written(tmp_path, header)
    with pytest.raises(
        ModelUnavailable, match=r"transformer/x\.safetensors: it is truncated, or its header is"
    ) as caught:
        stored_tensors(path)
    assert str(tmp_path) not in caught.value.message
    assert [tensor.key for tensor in stored_tensors(written(tmp_path, TWO))] == ["a", "b"]


def test_a_type_that_no_model_has_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, changed("b", dtype="F4", shape=[12]))
    with pytest.raises(ModelUnavailable, match="the tensor b is of the type F4"):
        stored_tensors(path)


@pytest.mark.parametrize("missing", [1, 14])
def test_a_truncated_file_is_refused(tmp_path: Path, missing: int) -> None:
    path = written(tmp_path, TWO)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ModelUnavailable, match="truncated"):
        stored_tensors(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match="truncated"):
        stored_tensors(path)


@pytest.mark.parametrize("length", [100_000_001, 2**63, 2**64 - 1])
def test_the_length_of_a_header_has_a_bound_and_is_not_trusted(tmp_path: Path, length: int) -> None:
    path = written(tmp_path, TWO, length=length)
    os.truncate(path, 100_001_000)  # as long as the least of them says, without taking any room
    with pytest.raises(ModelUnavailable, match="too large"):
        stored_tensors(path)


def test_a_file_that_is_missing_is_the_models_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="it is missing"):
        stored_tensors(tmp_path / "x.safetensors")
