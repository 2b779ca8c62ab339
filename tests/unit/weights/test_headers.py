"""Safetensors headers: good ones as the library reads them, bad ones refused before a tensor is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from worker.base.errors import ModelUnavailable
from worker.weights.tensors import headers
from worker.weights.tensors.headers import MAX_HEADER_BYTES, stored_tensors

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
    ("header", "said"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": 1, "a": 1}', "names a twice"),
        ({"a": []}, "does not describe"),
        (changed("b", extra=1), "does not describe"),
        (changed("b", dtype="F4"), "of the type F4"),
        (changed("b", shape=[-3]), "where the tensor b lies"),
        (changed("b", shape=[True, 3]), "where the tensor b lies"),
        (changed("b", data_offsets=[8]), "where the tensor b lies"),
        (changed("b", data_offsets=[8, 16]), "another size than its shape"),
        (changed("b", shape=[2**62, 2**62]), "another size than its shape"),
        (changed("b", data_offsets=[9, 15]), "a gap before the tensor b"),
        (changed("b", data_offsets=[7, 13]), "lays it over another"),
        ({"a": TWO["a"]}, "bytes where its header says"),
    ],
)
def test_a_header_that_is_not_true_is_refused(tmp_path: Path, header: object, said: str) -> None:
    path = written(tmp_path, header)
    with pytest.raises(ModelUnavailable, match=said) as caught:
        stored_tensors(path)
    assert "transformer/x.safetensors" in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert [tensor.key for tensor in stored_tensors(written(tmp_path, TWO))] == ["a", "b"]


@pytest.mark.parametrize("missing", [1, 14])
def test_a_truncated_file_is_refused(tmp_path: Path, missing: int) -> None:
    path = written(tmp_path, TWO)
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ModelUnavailable, match="bytes where its header says"):
        stored_tensors(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match="truncated"):
        stored_tensors(path)


def test_the_length_of_a_header_has_a_bound_and_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_HEADER_BYTES == 100_000_000
    path = written(tmp_path, TWO)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", length)
    assert len(stored_tensors(path)) == 2
    monkeypatch.setattr(headers, "MAX_HEADER_BYTES", length - 1)
    with pytest.raises(ModelUnavailable, match="header is damaged"):
        stored_tensors(path)
    monkeypatch.undo()
    with pytest.raises(ModelUnavailable, match="truncated"):
        stored_tensors(written(tmp_path, TWO, length=2**63))


def test_a_file_that_is_not_there_is_the_models_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="it is missing"):
        stored_tensors(tmp_path / "x.safetensors")
