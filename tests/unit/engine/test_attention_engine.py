"""The attention backend in whole videos: named in the result, given up where the latents are no picture."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kits.attention_kit import put, told, torchs_own
from tests.kits.engine_kit import PLANNER, demo_source, pixels, render, request
from worker.base.stop import Stop
from worker.engine import Engine
from worker.engine.techniques import attention
from worker.engine.techniques.attention import FALLBACK, NATIVE, Backend
from worker.weights.sources import demo

pytestmark = pytest.mark.usefixtures("backends_as_they_were")


def engine_with(monkeypatch: pytest.MonkeyPatch, *backends: Backend) -> Engine:
    monkeypatch.setattr(attention, "BACKENDS", (*backends, Backend(NATIVE)))
    return Engine(demo_source(), demo.catalogue(), PLANNER)


def test_the_result_names_the_backend_and_both_experts_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        calls.append(query.shape[1])
        return torchs_own(query, key, value)

    engine = engine_with(monkeypatch, put("_flash_3", counted))
    rendering = render(engine, request(num_inference_steps=6, guidance_scale=1.0))
    assert rendering.parameters["attention_backend"] == "_flash_3"
    assert calls[0] == attention._PROBE_TOKENS
    assert len(calls) == 1 + 6 * 2  # one probe for both experts, then self- and cross-attention of every step
    loaded = engine.models["t2v"]
    assert {backend for one in loaded.experts for backend in told(one)} == {("_flash_3", "_flash_3")}
    plain = engine_with(monkeypatch)
    assert (pixels(render(plain, request())) == pixels(render(engine, request()))).all()


def test_latents_of_nan_are_made_again_with_another_kernel_for_good(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def late(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        result = torchs_own(query, key, value)
        return result if query.shape[1] == attention._PROBE_TOKENS else result * float("nan")

    engine = engine_with(monkeypatch, replace(put("sage", late), quantised=True))
    engine.preload(["i2v"], Stop())
    video = request()
    first = render(engine, video)
    assert first.parameters["attention_backend"] == FALLBACK
    assert first.parameters["attention_reason"] == "the latents were no picture with sage"
    assert len([line for line in first.warnings if "sage attention" in line]) == 1
    assert "sage attention" in caplog.text
    again = render(engine, video)
    assert again.warnings == ()
    plain = engine_with(monkeypatch)
    plain.preload(["i2v"], Stop())  # whose text encoder serves both
    wanted = pixels(render(plain, video))
    assert (pixels(first) == wanted).all()
    assert (pixels(again) == wanted).all()
    for key in ("i2v", "t2v"):
        parts = engine.models[key].components
        both = (parts.transformer, parts.transformer_2)  # asking for them waits for their weights
        assert {backend for one in both if one is not None for backend in told(one)} == {(FALLBACK, FALLBACK)}


def test_a_model_that_is_broken_itself_fails_after_one_retry_and_attention_is_not_blamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_with(monkeypatch, Backend("_native_math"))
    engine.preload(["t2v"], Stop())
    expert = engine.models["t2v"].components.transformer
    video = request(num_inference_steps=1, guidance_scale=1.0)
    ran_with: list[tuple[str, str]] = []

    def forward(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        ran_with.extend(told(expert))
        return (torch.full_like(hidden_states, float("nan")),)

    with monkeypatch.context() as broken:
        broken.setattr(expert, "forward", forward)
        for _ in range(2):
            with pytest.raises(FloatingPointError):
                render(engine, video)
    assert ran_with == [("_native_math", "_native_math"), (FALLBACK, FALLBACK)] * 2
    assert render(engine, video).parameters["attention_backend"] == "_native_math"
