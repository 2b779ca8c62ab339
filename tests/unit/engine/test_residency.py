"""Who has its turn on the device, and what happens where memory runs out. test_same_frames has the frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kits.engine_kit import MODES, PLANNER, demo_source, engine_with, pixels, plan, render
from worker.base.errors import OutOfMemory
from worker.base.stop import Stop
from worker.engine import Engine
from worker.request.plan import Gpu
from worker.weights.sources import demo


@pytest.fixture(scope="module")
def resident() -> np.ndarray:
    """The text mode's video with everything resident."""
    return pixels(render(Engine(demo_source(), demo.catalogue(), PLANNER), *MODES["text"]))


def test_the_experts_take_turns_and_swap_once_a_video() -> None:
    engine = engine_with(plan("swap"))
    video, conditioning = MODES["text"]
    video = replace(video, num_inference_steps=20)
    frames = render(engine, video, conditioning).frames()
    loaded = engine.models["t2v"]
    residency, parts = loaded.residency, loaded.components
    turns: list[str] = []
    names = {parts.shared.text_encoder: "text", parts.shared.vae: "vae"}
    names |= {parts.transformer: "high", parts.transformer_2: "low"}
    list(frames)
    bring = residency.bring

    def noted(module: torch.nn.Module) -> None:
        if not turns or turns[-1] != names[module]:
            turns.append(names[module])
        bring(module)

    residency.bring = noted  # type: ignore[method-assign]
    list(render(engine, video, conditioning).frames())
    assert turns == ["high", "low", "vae"]  # the prompts are remembered: no text encoder
    turns.clear()
    list(render(engine, replace(video, prompt="another"), conditioning).frames())
    assert turns == ["text", "high", "low", "vae"]


def test_a_part_leaves_the_device_when_another_has_its_turn() -> None:
    """The device is the host here: a copy of each weight, put in its place, stands for what is on the device."""
    engine = engine_with(plan("swap"))
    engine.preload(["t2v"], Stop())
    residency, parts = engine.models["t2v"].residency, engine.models["t2v"].components
    order = [parts.shared.text_encoder, *parts.modules, parts.shared.vae]
    for module in order:  # waits for its weights
        residency.bring(module)
    residency.take_moves()
    hosted = {module: addresses(module) for module in order}
    for module in order:
        residency.bring(module)
        assert residency.current is module
        for tensor in module.parameters():
            tensor.data = tensor.data.clone()
        away = [other for other in order if other is not module]
        assert {other: addresses(other) for other in away} == {other: hosted[other] for other in away}
        assert set(addresses(module)) & set(hosted[module]) == set()
    assert residency.take_moves() == len(order)
    residency.leave()
    assert {module: addresses(module) for module in order} == hosted


def addresses(module: torch.nn.Module) -> list[int]:
    return [tensor.data_ptr() for tensor in module.parameters()]


def test_models_that_do_not_fit_together_make_room_for_each_other(caplog: pytest.LogCaptureFixture) -> None:
    """On a GPU of a few kB of budget beyond one model's peak, the two A14B models swap, and the log says so."""
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (8, 0))
    engine = engine_with(plan("resident", peak=gpu.budget_bytes), gpu=gpu)
    text, image = MODES["text"], MODES["image"]
    with caplog.at_level("INFO", logger="worker"):
        first = pixels(render(engine, *text))
        second = pixels(render(engine, *image))
        assert (pixels(render(engine, *text)) == first).all()
        assert (pixels(render(engine, *image)) == second).all()
    assert sum("made room" in record.message for record in caplog.records) == 3


def test_where_host_memory_is_full_too_the_other_model_goes() -> None:
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (8, 0))
    engine = engine_with(plan("resident", peak=gpu.budget_bytes), gpu=gpu, host_bytes=0)
    first = pixels(render(engine, *MODES["text"]))
    render(engine, *MODES["image"])
    with pytest.raises(KeyError):
        engine.models["t2v"]
    assert (pixels(render(engine, *MODES["text"])) == first).all()


def fail_once(engine: Engine, key: str, times: int) -> None:
    """The high-noise expert runs out of memory at its first `times` calls."""
    engine.models.use(next(s for s in demo.catalogue() if s.key == key), engine.planner.plan(None, None), Stop())  # type: ignore[arg-type]
    left = [times]
    original = type(engine.models[key].components.transformer).forward

    def forward(*arguments: Any, **named: Any) -> Any:
        if left[0] > 0:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **named)

    engine.models[key].components.transformer.forward = forward.__get__(engine.models[key].components.transformer)


def test_out_of_memory_is_tried_once_more_under_the_next_plan(resident: np.ndarray) -> None:
    engine = engine_with(plan("resident"), below=plan("swap"))
    fail_once(engine, "t2v", 1)
    rendering = render(engine, *MODES["text"])
    assert "swap" in rendering.parameters["memory_plan"]
    assert (pixels(rendering) == resident).all()


def test_out_of_memory_without_a_lower_plan_is_told_and_the_next_video_runs(resident: np.ndarray) -> None:
    engine = engine_with(plan("resident"))
    fail_once(engine, "t2v", 1)
    with pytest.raises(OutOfMemory):
        render(engine, *MODES["text"])
    assert (pixels(render(engine, *MODES["text"])) == resident).all()


def test_out_of_memory_while_decoding_goes_on_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_with(plan("resident"))
    video = replace(MODES["text"][0], num_frames=17)
    exact = pixels(render(engine, video))
    rendering = render(engine, video)
    decoder = engine.models["t2v"].components.shared.vae.decoder
    original, calls = decoder.forward, [0]

    def forward(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*arguments, **named)

    monkeypatch.setattr(decoder, "forward", forward)
    frames = pixels(rendering)
    assert frames.shape == exact.shape
    assert (frames[:5] == exact[:5]).all()  # what was handed out before memory ran out
