"""LoRA files of hostile bytes: pickles and headers that no LoRA has are refused at once, and never opened."""

from __future__ import annotations

import json
import math
import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kits.lora_kit import Opened
from worker.base.errors import InputInvalid
from worker.weights.loras.content import Contents
from worker.weights.loras.header import MAX_HEADER_BYTES, check_safetensors


def header_of(tensors: dict[str, Any], claimed: int | None = None, body: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


def entry(start: int, end: int, shape: list[int] | None = None) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape if shape is not None else [(end - start) // 4], "data_offsets": [start, end]}


@pytest.mark.parametrize("form", ["torch", "torch-old", "pickle"])
def test_a_pickle_is_refused_by_its_bytes_and_never_opened(tmp_path: Path, form: str) -> None:
    file = tmp_path / "style.safetensors"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Opened()))
    else:
        torch.save({"a": torch.ones(2), "b": Opened()}, file, _use_new_zipfile_serialization=form == "torch")
    with pytest.raises(InputInvalid, match="pickle"):
        check_safetensors(file, path="p")
    assert Opened.seen == ()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x08\x00\x00\x00\x00\x00\x00",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{",
        b"<!doctype html><title>Sign in</title>",
        b"GGUF\x03\x00\x00\x00" + bytes(64),
        bytes(1000),
        b"\xff" * 1000,
        header_of({"a": entry(0, 400)}, body=bytes(399)),
        header_of({"a": entry(0, 400)}, body=bytes(401)),
        header_of({"a": entry(0, 400)}, claimed=2**63, body=bytes(400)),
        header_of({"a": entry(0, 400)}, claimed=2**64 - 1, body=bytes(400)),
        header_of({"a": entry(0, 400)}, claimed=5, body=bytes(400)),
        header_of({"a": entry(0, 400, [2**40, 2**40])}, body=bytes(400)),
        header_of({"a": entry(4, 400)}, body=bytes(400)),
        header_of({"a": entry(0, 400), "b": entry(0, 400)}, body=bytes(400)),
        header_of({"a": entry(400, 0, [100])}, body=bytes(400)),
        header_of({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, body=bytes(4)),
        header_of({"a": {"dtype": "F32"}}, body=bytes(4)),
        header_of({"__metadata__": {"a": 1}}),
        header_of({}),
        header_of({"__metadata__": {"a": "b"}}),
        struct.pack("<Q", 40_000) + b"[" * 40_000,
        struct.pack("<Q", 40_000) + b'{"a":' * 8_000,
    ],
)
def test_what_is_no_whole_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(content)
    with pytest.raises(InputInvalid) as caught:
        check_safetensors(file, path="loras[0].source")
    assert caught.value.path == "loras[0].source"
    assert "send" in caught.value.message or "use the address" in caught.value.message
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("beyond", [0, 1])
def test_the_header_is_bounded_before_it_is_parsed(tmp_path: Path, beyond: int) -> None:
    file = tmp_path / "long.safetensors"
    text = json.dumps({"a": entry(0, 4)}).encode().ljust(MAX_HEADER_BYTES + beyond)
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    if beyond:
        with pytest.raises(InputInvalid):
            check_safetensors(file, path="p")
    else:
        check_safetensors(file, path="p")


def many(count: int, shape: list[int]) -> bytes:
    """A file of `count` tensors of bytes, each of `shape`."""
    size = math.prod(shape)
    header = {
        f"x{number}": {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
        for number in range(count)
    }
    return header_of(header, body=bytes(count * size))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: many(1, [1] * 70_000), "dimensions"),
        (lambda: many(1, [1] * 6), "dimensions"),
        (lambda: many(90_000, [1]), "90000 tensors"),
        (lambda: many(10_001, [1]), "10001 tensors"),
        (lambda: header_of({"a" * 501: entry(0, 4)}, body=bytes(4)), "more than 500 characters"),
        (
            lambda: header_of({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, body=bytes(4)),
            "F8_E8M0",
        ),
        (lambda: header_of({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, body=bytes(4)), "F4"),
        (lambda: header_of({"a": {"dtype": "F4_X", "shape": [8], "data_offsets": [0, 4]}}, body=bytes(4)), "damaged"),
        (lambda: header_of({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}), "shape"),
        (lambda: header_of({"a": {"dtype": "F32", "shape": [0, 2**31 + 1], "data_offsets": [0, 0]}}), "shape"),
    ],
)
def test_a_header_that_no_lora_has_is_refused_at_once_when_fetched_and_when_read(
    tmp_path: Path, content: Callable[[], bytes], said: str
) -> None:
    """A cache may hold files that an earlier version did not judge."""
    file = tmp_path / "style.safetensors"
    file.write_bytes(content())
    for judge in (check_safetensors, Contents().of):
        started = time.process_time()
        with pytest.raises(InputInvalid, match=said) as caught:
            judge(file, path="loras[0].source")
        assert time.process_time() - started < 4  # it was 10 to 20 s, and grew with the square
        assert caught.value.path == "loras[0].source"


@pytest.mark.parametrize(
    "content",
    [lambda: many(1, [1] * 5), lambda: many(10_000, [1]), lambda: header_of({"a" * 500: entry(0, 4)}, body=bytes(4))],
)
def test_the_largest_header_that_a_lora_may_have_is_read(tmp_path: Path, content: Callable[[], bytes]) -> None:
    file = tmp_path / "style.safetensors"
    file.write_bytes(content())
    check_safetensors(file, path="p")
    assert Contents().of(file, "p").total in (1, 10_000)


def test_a_header_whose_length_looks_like_a_pickle_is_a_header(tmp_path: Path) -> None:
    file = tmp_path / "good.safetensors"
    text = json.dumps({"a": entry(0, 4)}).encode().ljust(0x280)
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    assert file.read_bytes()[:2] == b"\x80\x02"
    check_safetensors(file, path="p")
