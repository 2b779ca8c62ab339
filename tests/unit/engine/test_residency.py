"""Every memory plan that a CPU can run makes the same frames as everything resident."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from tests.unit.engine.test_engine import PICTURE, PLANNER, image_request, pixels, render, request
from worker.base.errors import OutOfMemory
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.device import Planner
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import Gpu, MemoryPlan, Shape
from worker.weights.sources import demo

VIDEO = Conditioning(video=[PICTURE.image] * 5)  # type: ignore[list-item]
BOTH_ENDS = replace(PICTURE, last_image=PICTURE.image)


def plan(
    residency: Literal["resident", "swap", "group_offload", "sequential"],
    precision: Literal["fp32", "fp8", "int8"] = "fp32",
    *,
    text_encoder: Literal["resident", "offloaded"] = "offloaded",
    vae_tiling: bool = False,
    peak: int = 0,
) -> MemoryPlan:
    return MemoryPlan(precision, residency, text_encoder, vae_tiling, peak, 0, ())


@dataclass(frozen=True)
class FixedPlanner(Planner):
    """Plans what the test says instead of what a GPU would need."""

    fixed: MemoryPlan | None = None
    below: MemoryPlan | None = None

    def plan(self, spec: ModelSpec, shape: Shape, *, path: str | None = None) -> MemoryPlan:
        assert self.fixed is not None
        return self.fixed

    def lower(self, plan: MemoryPlan, spec: ModelSpec, shape: Shape) -> MemoryPlan | None:
        return self.below


def engine_with(
    fixed: MemoryPlan, *, below: MemoryPlan | None = None, gpu: Gpu | None = None, host_bytes: int | None = None
) -> Engine:
    planner = FixedPlanner(torch.device("cpu"), gpu, host_bytes, Settings(), fixed, below)
    return Engine(demo.DemoSource(), demo.catalogue(), planner)


MODES: dict[str, tuple[VideoRequest, Conditioning]] = {
    "text": (request(num_inference_steps=4), Conditioning()),
    "image": (image_request(num_inference_steps=4), PICTURE),
    "both ends": (image_request(num_inference_steps=4, last_image_url="https://example.com/b.png"), BOTH_ENDS),
    "video": (request(num_inference_steps=4, reference_video_url="https://example.com/a.mp4"), VIDEO),
    "5b text": (request(model="5b"), Conditioning()),
    "5b image": (image_request(model="5b"), PICTURE),
}
PLANS = {
    "text encoder offloaded": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "sequential": plan("sequential"),
}


@pytest.fixture(scope="module")
def resident() -> dict[str, np.ndarray]:
    engine = Engine(demo.DemoSource(), demo.catalogue(), PLANNER)
    return {name: pixels(render(engine, video, conditioning)) for name, (video, conditioning) in MODES.items()}


@pytest.mark.parametrize("name", PLANS)
def test_every_mode_makes_equal_frames_under_every_plan(name: str, resident: dict[str, np.ndarray]) -> None:
    engine = engine_with(PLANS[name])
    for mode, (video, conditioning) in MODES.items():
        rendering = render(engine, video, conditioning)
        assert (pixels(rendering) == resident[mode]).all(), mode
        assert PLANS[name].residency in rendering.parameters["memory_plan"]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp8", 40), ("int8", 25)])
@pytest.mark.parametrize("residency", ["resident", "swap", "group_offload"])
def test_quantised_weights_make_similar_frames(
    precision: Any, tolerance: int, residency: Any, resident: dict[str, np.ndarray]
) -> None:
    engine = engine_with(plan(residency, precision))
    for mode in ("text", "image"):
        video, conditioning = MODES[mode]
        frames = pixels(render(engine, video, conditioning)).astype(int)
        difference = np.abs(frames - resident[mode].astype(int)).max()
        assert 0 < difference <= tolerance


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


def test_out_of_memory_is_tried_once_more_under_the_next_plan(resident: dict[str, np.ndarray]) -> None:
    engine = engine_with(plan("resident"), below=plan("swap"))
    fail_once(engine, "t2v", 1)
    rendering = render(engine, *MODES["text"])
    assert "swap" in rendering.parameters["memory_plan"]
    assert (pixels(rendering) == resident["text"]).all()


def test_out_of_memory_without_a_lower_plan_is_told_and_the_next_video_runs(resident: dict[str, np.ndarray]) -> None:
    engine = engine_with(plan("resident"))
    fail_once(engine, "t2v", 1)
    with pytest.raises(OutOfMemory):
        render(engine, *MODES["text"])
    assert (pixels(render(engine, *MODES["text"])) == resident["text"]).all()


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
