"""Every exact backend agrees with plain products at the tokens of 832x480x81, and the choice is made by time."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

from tests.kits.engine_kit import plan
from worker.base.settings import Settings
from worker.engine.techniques import Setup, attention
from worker.engine.techniques.attention import BACKENDS, FALLBACK, NATIVE, Attention

TOKENS, HEADS, DIM, QUERIES = 32_760, 40, 128, 512
SETUP = Setup(Settings(), torch.device("cuda", 0), torch.bfloat16)


def expert() -> WanTransformer3DModel:
    made = WanTransformer3DModel(
        num_attention_heads=8, attention_head_dim=DIM, text_dim=32, freq_dim=32, ffn_dim=256, num_layers=1
    )
    return made.to(SETUP.device, SETUP.dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda each: each.name)
@torch.no_grad()
def test_a_backend_agrees_with_plain_products(backend: attention.Backend) -> None:
    if (reason := backend.missing(SETUP)) is not None:
        pytest.skip(reason)
    source = torch.Generator(SETUP.device).manual_seed(1)
    query, key, value = (
        torch.randn(1, TOKENS, HEADS, DIM, generator=source, device=SETUP.device, dtype=SETUP.dtype) for _ in range(3)
    )
    found = dispatch_attention_fn(query, key, value, backend=AttentionBackendName(backend.name))[:, :QUERIES].float()
    scores = torch.einsum("bqhd,bkhd->bhqk", query[:, :QUERIES].float(), key.float()) / DIM**0.5
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value.float())
    assert float((found - wanted).norm() / wanted.norm()) < backend.tolerance


def test_the_fastest_exact_backend_is_chosen() -> None:
    technique = Attention(Setup(Settings(enable_sage_attention=False), SETUP.device, SETUP.dtype))
    technique.prepare(expert(), plan("resident"))
    assert technique.backend is not None
    assert technique.backend.name in {each.name for each in BACKENDS if not each.quantised}
    assert technique.reason.startswith(f"the fastest at {TOKENS} tokens: " + technique.backend.name)
    assert NATIVE in technique.reason
    assert FALLBACK in technique.reason


def test_flash_attention_3_is_found_where_it_is_installed() -> None:
    import importlib.util

    if importlib.util.find_spec("fa3_fwd_interface") is None:
        pytest.skip("fa3-fwd is not installed")
    assert attention._flash_3(SETUP) is None
    assert attention.probe("_flash_3", expert(), SETUP) < 0.02
