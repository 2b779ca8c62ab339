"""What the tests of downloads share: a hub that serves the tiny repositories, and a way to ask for one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils._http import close_session

from tests.kits.hub_server import HubServer
from tests.kits.tiny_repo import tiny_repos
from worker.weights import ModelCache, ModelFolder
from worker.weights.ensure import ensure
from worker.weights.hub.transfer import Retries

I2V = "Wan-AI/Wan2.2-I2V-A14B-Diffusers"
T2V = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
SHARD = "transformer/diffusion_pytorch_model-00003-of-00006.safetensors"
ENCODER = "text_encoder/model-00001-of-00002.safetensors"
QUICK = Retries(backoff_s=0.01)
VAE = "vae/diffusion_pytorch_model.safetensors"


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with both tiny models, and no token of this machine."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent")
    with HubServer() as server:
        server.add(I2V, tiny_repos() / "i2v")
        server.add(T2V, tiny_repos() / "t2v")
        server.add("Wan-AI/Wan2.2-I2V-A14B", tiny_repos() / "original")
        yield server
        close_session()


def place(cache: Path, **options: Any) -> ModelCache:
    """A cache of the test, with no models of RunPod or the image but those of the test."""
    return ModelCache(cache, cache.parent / "runpod", cache.parent / "image", **options)


def get(hub: HubServer, cache: Path, model_id: str = I2V, **options: Any) -> ModelFolder:
    """`ensure` with the hub of the test and short waits between attempts."""
    token, endpoint = options.pop("token", None), options.pop("endpoint", hub.url)
    return ensure(place(cache, endpoint=endpoint, token=token), model_id, **{"retries": QUICK, **options})


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
