"""The step cache on the real classes at a small size: what it leaves out, where it does not, and that nothing stays."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

from tests.kits import lora_kit
from tests.kits.engine_kit import (
    BOTH_ENDS,
    PICTURE,
    PLANNER,
    VIDEO,
    FixedPlanner,
    Quiet,
    StopsAt,
    demo_source,
    image_request,
    pixels,
    plan,
    render,
    request,
)
from tests.kits.slow import slow
from worker.base.errors import Cancelled, OutOfMemory
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.techniques import step_cache
from worker.request import VideoRequest
from worker.request.plan import Shape, peak
from worker.request.plan.sizes import SIZES
from worker.weights.loras import LoraFile
from worker.weights.sources import demo

BLOCKS = 4
STEPS = 10


@pytest.fixture(scope="module")
def engine() -> Engine:
    made = Engine(demo_source(BLOCKS), demo.catalogue(), PLANNER)
    made.preload(["i2v", "t2v", "5b"], Stop())
    return made


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds that always leave out what may be left out."""
    monkeypatch.setattr(step_cache, "THRESHOLDS", {"balanced": 1e9, "fast": 1e9})


class BlockCounter:
    """Of every pass of an expert, in order: its step (counted by timesteps), its expert, and whether blocks ran."""

    def __init__(self, engine: Engine, key: str = "t2v") -> None:
        self.passes: list[tuple[int, str, bool]] = []
        self._engine, self._key = engine, key

    def __enter__(self) -> BlockCounter:
        parts = self._engine.models[self._key].components
        self._hooks: list[Any] = []
        timesteps: list[float] = []
        ran = [0]
        for name, expert in (("high", parts.transformer), ("low", parts.transformer_2)):
            if expert is None:
                continue

            def before(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
                timestep = float(kwargs["timestep"].flatten()[-1])
                if not timesteps or timesteps[-1] != timestep:
                    timesteps.append(timestep)
                ran[0] = 0

            def after(*_: object, name: str = name) -> None:
                self.passes.append((len(timesteps) - 1, name, ran[0] > 0))

            def inner(*_: object) -> None:
                ran[0] += 1

            self._hooks.append(expert.register_forward_pre_hook(before, with_kwargs=True))
            self._hooks.append(expert.register_forward_hook(after))
            # The cache replaces `forward` of a block; a layer within it runs only where the block does.
            self._hooks.append(expert.blocks[-1].ffn.register_forward_pre_hook(inner))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    @property
    def computed_steps(self) -> list[int]:
        return sorted({step for step, _, ran in self.passes if ran})


CASES: dict[str, tuple[str, VideoRequest, Conditioning]] = {
    "text": ("t2v", request(num_inference_steps=STEPS), Conditioning()),
    "text unguided": ("t2v", request(num_inference_steps=STEPS, guidance_scale=1.0), Conditioning()),
    "image": ("i2v", image_request(num_inference_steps=STEPS), PICTURE),
    "both ends": (
        "i2v",
        image_request(num_inference_steps=STEPS, last_image_url="https://example.com/b.png"),
        BOTH_ENDS,
    ),
    "video": (
        "t2v",
        request(num_inference_steps=13, reference_video_url="https://example.com/a.mp4", strength=0.8),
        VIDEO,
    ),
    "5b": ("5b", request(num_inference_steps=STEPS, model="5b"), Conditioning()),
}


@pytest.mark.parametrize("case", ["text", "image", *slow(*(case for case in CASES if case not in ("text", "image")))])
@pytest.mark.usefixtures("eager")
def test_only_the_first_and_last_steps_and_each_experts_first_are_computed(engine: Engine, case: str) -> None:
    key, video, conditioning = CASES[case]
    with BlockCounter(engine, key) as ran:
        rendering = render(engine, replace(video, step_cache="fast"), conditioning)
    steps = 1 + max(step for step, _, _ in ran.passes)
    assert steps == STEPS
    first_low = next((step for step, expert, _ in ran.passes if expert == "low"), 0)
    assert ran.computed_steps == sorted({0, first_low, STEPS - 1})
    left_out = [step for step, _, computed in ran.passes if not computed]
    assert rendering.parameters["step_cache"] == "fast"
    assert rendering.parameters["step_cache_share"] == round(len(left_out) / len(ran.passes), 3)
    assert rendering.warnings == ()


@pytest.mark.parametrize("case", ["text", *slow("image", "video", "5b")])
def test_a_video_without_the_cache_is_the_same_before_and_after_one_with_it(engine: Engine, case: str) -> None:
    _, video, conditioning = CASES[case]
    before = render(engine, video, conditioning)
    exact = pixels(before)
    assert before.parameters["step_cache"] == "off"
    cached = [pixels(render(engine, replace(video, step_cache="fast"), conditioning)) for _ in range(2)]
    assert (cached[0] == cached[1]).all()  # no state of one run reaches the next
    assert (pixels(render(engine, video, conditioning)) == exact).all()


def test_the_passes_with_and_without_the_prompt_keep_their_own_residuals(engine: Engine) -> None:
    """With one state for both, the difference that guidance magnifies would be lost."""
    video = request(num_inference_steps=STEPS, guidance_scale=8.0, prompt="a cat on a red sofa in the rain")
    exact = pixels(render(engine, video)).astype(float)
    cached = render(engine, replace(video, step_cache="balanced"))
    off = np.abs(pixels(cached).astype(float) - exact).mean()
    unguided = pixels(render(engine, replace(video, guidance_scale=1.0, guidance_scale_2=1.0))).astype(float)
    assert cached.parameters["step_cache_share"] > 0
    assert off < np.abs(unguided - exact).mean() / 2


@pytest.mark.slow
def test_fast_leaves_out_more_than_balanced(engine: Engine) -> None:
    video = request(num_inference_steps=40)
    shares = [
        render(engine, replace(video, step_cache=mode)).parameters["step_cache_share"] for mode in ("balanced", "fast")
    ]
    assert 0 < shares[0] < shares[1] < 0.9


def stopping(engine: Engine, video: VideoRequest, after: float) -> None:
    stop = Stop()
    with pytest.raises(Cancelled):
        render(engine, video, stop=stop, watcher=StopsAt(stop, after))


def failing(engine: Engine, video: VideoRequest, failure: Exception) -> None:
    """In the middle of the first block, which runs in every step, of the fourth step."""
    expert = engine.models["t2v"].components.transformer
    calls = itertools.count(1)

    def fail(*_: object) -> None:
        if next(calls) == 7:
            raise failure

    hook = expert.blocks[0].attn2.register_forward_pre_hook(fail)
    try:
        with pytest.raises((type(failure), OutOfMemory)):
            render(engine, video)
    finally:
        hook.remove()


ENDS: dict[str, Callable[[Engine, VideoRequest], None]] = {
    "stopped": lambda engine, video: stopping(engine, video, 0.4),
    "stopped at the first step": lambda engine, video: stopping(engine, video, 0.0),
    "failed": lambda engine, video: failing(engine, video, RuntimeError("broken")),
    "out of memory": lambda engine, video: failing(engine, video, torch.OutOfMemoryError("CUDA out of memory")),
}


@pytest.mark.parametrize("end", ["stopped", *slow(*list(ENDS)[1:])])
def test_a_run_that_ends_early_leaves_nothing_behind(engine: Engine, end: str) -> None:
    video = request(num_inference_steps=STEPS)
    cached = replace(video, step_cache="fast")
    exact, wanted = pixels(render(engine, video)), pixels(render(engine, cached))
    ENDS[end](engine, cached)
    engine.preload(["t2v"], Stop())  # out of memory dropped it
    assert not any(expert.is_cache_enabled for expert in engine.models["t2v"].experts)
    assert (pixels(render(engine, cached)) == wanted).all()
    assert (pixels(render(engine, video)) == exact).all()


@pytest.mark.slow  # test_a_run_that_ends_early_leaves_nothing_behind
def test_the_try_after_out_of_memory_is_as_a_first_one(engine: Engine) -> None:
    planner = FixedPlanner(None, Settings(), None, plan("resident"), plan("swap"))
    tight = Engine(demo_source(BLOCKS), demo.catalogue(), planner)
    tight.preload(["t2v"], Stop())
    video = request(num_inference_steps=STEPS, step_cache="fast")
    wanted = pixels(render(tight, video))
    calls = itertools.count(1)

    def fail_once(*_: object) -> None:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    tight.models["t2v"].components.transformer.blocks[2].register_forward_pre_hook(fail_once)
    rendering = render(tight, video)
    assert "swap" in rendering.parameters["memory_plan"]
    assert (pixels(rendering) == wanted).all()


@pytest.mark.slow
@pytest.mark.parametrize("residency", ["swap", "group_offload", "sequential"])
def test_the_cache_gives_the_same_under_every_plan(engine: Engine, residency: Any) -> None:
    planner = FixedPlanner(None, Settings(), None, plan(residency), None)
    other = Engine(demo_source(BLOCKS), demo.catalogue(), planner)
    other.preload(["i2v"], Stop())
    video = request(num_inference_steps=STEPS, step_cache="fast")
    rendering = render(other, video)
    assert rendering.parameters["step_cache_share"] > 0
    assert (pixels(rendering) == pixels(render(engine, video))).all()
    exact = replace(video, step_cache="off")
    assert (pixels(render(other, exact)) == pixels(render(engine, exact))).all()


def kept_tensors(engine: Engine) -> list[list[torch.Tensor]]:
    """What each expert's cache keeps."""
    found: list[list[torch.Tensor]] = []
    for expert in engine.models["t2v"].experts:
        states = expert.blocks[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK).state_manager._state_cache.values()
        kept = [(s.head_block_output, s.head_block_residual, (s.tail_block_residuals or (None,))[0]) for s in states]
        found.append([tensor for tensors in kept for tensor in tensors if tensor is not None])
    return found


def test_one_expert_at_a_time_keeps_what_the_memory_plan_counts(engine: Engine) -> None:
    sizes: list[list[int]] = []

    class Watcher(Quiet):
        def generating(self, fraction: float) -> None:
            if fraction > 0:
                sizes.append([sum(tensor.numel() for tensor in kept) for kept in kept_tensors(engine)])

    video = request(num_inference_steps=STEPS, step_cache="balanced")
    render(engine, video, watcher=Watcher())
    tokens, dim = 2 * 4 * 4, 24  # of 5 frames of 64 x 64, and the width of the small model
    two_passes = 2 * 3 * tokens * dim
    assert {tuple(each) for each in sizes} == {(two_passes, 0), (0, two_passes)}
    with_cache, without = (
        peak.denoise_bytes(SIZES["t2v"], Shape(832, 480, 81, step_cache=cached), "bf16") for cached in (True, False)
    )
    full_size = SIZES["t2v"]
    assert with_cache - without == 2 * 2 * 3 * full_size.tokens(Shape(832, 480, 81)) * full_size.dim


@pytest.mark.usefixtures("eager")
def test_loras_are_in_effect_under_the_cache(engine: Engine, tmp_path: Path) -> None:
    pairs = lora_kit.factors(engine.models["t2v"].components.transformer, "blocks.0.attn1.to_q", "blocks.0.ffn.net.2")
    file = lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs))
    video = request(num_inference_steps=STEPS, step_cache="fast", loras=[{"source": "a.safetensors", "scale": 4.0}])
    plain = replace(video, loras=())

    def rendered(one: VideoRequest) -> np.ndarray:
        files = tuple(LoraFile(file, "", file.name) for _ in one.loras)
        rendering = render(engine, one, loras=files)
        assert rendering.parameters["step_cache_share"] > 0.5
        return pixels(rendering)

    before, styled = rendered(plain), rendered(video)
    assert (before != styled).any()
    assert (rendered(video) == styled).all()
    assert (rendered(plain) == before).all()


def test_turbo_runs_without_it_and_says_so(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    video = request(quality_preset="turbo")
    exact = pixels(render(engine, video))
    rendering = render(engine, replace(video, step_cache="fast"))
    assert rendering.parameters["step_cache"] == "off"
    assert [line for line in rendering.warnings if line.startswith("step_cache: off, ")]
    assert "step_cache is off" in caplog.text
    assert (pixels(rendering) == exact).all()
