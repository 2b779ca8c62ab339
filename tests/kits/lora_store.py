"""A store of LoRA files with the operator's folder in a test's own, and a hub that has one."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import close_session

from tests.kits.hub_server import HubServer
from tests.kits.weights_kit import QUICK
from worker.net import Opener
from worker.weights.loras import LoraFile, LoraStore

PATH = "job_request_params[0].loras[1].source"
REPO = "someone/wan-styles"


def tensors(fill: int = 0, size: int = 4) -> bytes:
    """A small safetensors file; its content follows from `fill`."""
    text = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * size


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The operator's folder of LoRAs."""
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def store(home: Path) -> LoraStore:
    return store_in(home)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with HubServer() as server:
        server.add(REPO, {"style/high.safetensors": tensors(1), "README.md": b"# styles"})
        yield server
        close_session()


def store_in(home: Path, **options: object) -> LoraStore:
    options = {"token": None, "retries": QUICK, **options}
    return LoraStore(home.parent, Opener(("127.0.0.1",)), **options)  # type: ignore[arg-type]


def content_of(found: LoraFile) -> bytes:
    content = found.path.read_bytes()
    assert sha256(content) == found.sha256
    return content


def kept(home: Path) -> list[str]:
    return sorted(path.name for path in (home / ".cache").glob("*.safetensors"))
