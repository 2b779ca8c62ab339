"""Attention backends that a test puts into Diffusers' registry, and what the layers were told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

from worker.engine.techniques.attention import Backend

Attend = Callable[..., torch.Tensor]


@pytest.fixture
def backends_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Diffusers' registry is one for the process. Its checks of packages pass, for the backends that tests put in."""
    known, active = dict(_AttentionBackendRegistry._backends), _AttentionBackendRegistry._active_backend
    for package in ("SAGE_ATTN", "FLASH_ATTN_3"):
        monkeypatch.setattr(attention_dispatch, f"_CAN_USE_{package}", True)
    yield
    _AttentionBackendRegistry._backends = known
    _AttentionBackendRegistry._active_backend = active


def put(name: str, attend: Attend) -> Backend:
    """Have `attend` compute what Diffusers knows as the backend `name`; the backend, which needs no package."""
    own = AttentionBackendName(name)
    _AttentionBackendRegistry._backends[own] = attend
    _AttentionBackendRegistry._supported_arg_names[own] = {"query", "key", "value"}
    return Backend(name)


def torchs_own(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    native = AttentionBackendName.NATIVE
    found: torch.Tensor = attention_dispatch.dispatch_attention_fn(query, key, value, backend=native)
    return found


def told(expert: WanTransformer3DModel) -> list[tuple[str, str]]:
    """What self-attention and cross-attention of each block were told."""
    return [
        tuple(layer.processor._attention_backend.value for layer in (block.attn1, block.attn2))
        for block in expert.blocks
    ]
