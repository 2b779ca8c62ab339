"""The fused kernels in whole videos, with everything that wraps a block or changes its layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.kits import lora_kit
from tests.kits.engine_kit import PICTURE, FixedPlanner, demo_source, image_request, pixels, plan, render, request
from tests.kits.fused_block import CPU, counted
from tests.kits.slow import slow
from worker.base.settings import Settings
from worker.engine import Conditioning, Engine, kernels
from worker.request.plan import MemoryPlan
from worker.weights.loras import LoraFile
from worker.weights.sources import demo


@pytest.fixture
def on_this_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The reference as the kernels of the CPU; the count of fused blocks."""
    by, calls = counted()
    monkeypatch.setattr(kernels, "of", lambda _: by)
    return calls


def engine_of(source: demo.DemoSource, fixed: MemoryPlan, **fields: Any) -> Engine:
    return Engine(source, demo.catalogue(), FixedPlanner(None, Settings(**fields), None, fixed, None), CPU)


@pytest.fixture(scope="module")
def source() -> demo.DemoSource:
    return demo_source(3)


PLANS = {
    "resident": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "fp8": plan("resident", "fp8"),
    "fp8 and group offload": plan("group_offload", "fp8"),
    "int8": plan("resident", "int8"),
}
VIDEOS: dict[str, tuple[Any, Conditioning]] = {
    "text": (request(num_inference_steps=4), Conditioning()),
    "image": (image_request(num_inference_steps=4), PICTURE),
    "5b": (image_request(num_inference_steps=4, model="5b"), PICTURE),
    "step cache": (request(num_inference_steps=10, step_cache="fast"), Conditioning()),
}


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).max() <= 1)


QUICK = ("resident",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in PLANS]
)
def test_every_plan_makes_the_frames_of_diffusers_blocks(
    name: str, source: demo.DemoSource, on_this_cpu: list[int]
) -> None:
    plain = engine_of(source, PLANS[name], enable_fused_kernels=False)
    engine = engine_of(source, PLANS[name])
    for case in VIDEOS if name == "resident" else ("text",):
        video, conditioning = VIDEOS[case]
        wanted = render(plain, video, conditioning)
        on_this_cpu[0] = 0
        rendering = render(engine, video, conditioning)
        assert on_this_cpu[0] > 0, case
        assert rendering.parameters["fused_kernels"] == "on", case
        assert wanted.parameters["fused_kernels"] == "off"
        assert same(pixels(rendering), pixels(wanted)), case
        if case == "step cache":
            assert rendering.parameters["step_cache_share"] == wanted.parameters["step_cache_share"] > 0


@pytest.mark.slow
def test_magcache_measures_fused_blocks_and_leaves_them_out(
    source: demo.DemoSource, on_this_cpu: list[int], tmp_path: Path
) -> None:
    plain = engine_of(source, PLANS["resident"], enable_fused_kernels=False, model_cache_dir=tmp_path)
    engine = engine_of(source, PLANS["resident"], model_cache_dir=tmp_path)
    video, conditioning = VIDEOS["step cache"]
    with engine.techniques.calibrating():
        render(engine, video, conditioning)
    wanted = render(plain, video, conditioning)
    on_this_cpu[0] = 0
    rendering = render(engine, video, conditioning)
    assert on_this_cpu[0] > 0
    assert rendering.parameters["step_cache_rule"] == wanted.parameters["step_cache_rule"] == "magcache"
    assert rendering.parameters["step_cache_share"] == wanted.parameters["step_cache_share"] > 0
    assert same(pixels(rendering), pixels(wanted))


@pytest.mark.parametrize("name", ["group offload", *slow("resident", "swap", "fp8")])
def test_loras_are_in_effect_and_go_again(
    name: str, source: demo.DemoSource, on_this_cpu: list[int], tmp_path: Path
) -> None:
    plain = engine_of(source, PLANS[name], enable_fused_kernels=False)
    engine = engine_of(source, PLANS[name])
    video, conditioning = VIDEOS["step cache"]
    before = pixels(render(engine, video, conditioning))
    pairs = lora_kit.factors(
        engine.models["t2v"].components.transformer,
        *(f"blocks.1.attn1.{each}" for each in ("to_q", "to_k", "to_out.0")),
    )
    file = lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs))
    with_lora = replace(video, loras=request(loras=[{"source": "a.safetensors", "scale": 4.0}]).loras)
    made = {}
    for each in (engine, plain):
        on_this_cpu[0] = 0
        rendering = render(each, with_lora, conditioning, loras=(LoraFile(file, "", file.name),))
        made[each] = pixels(rendering)
        assert (on_this_cpu[0] > 0) is (each is engine)
    assert same(made[engine], made[plain])
    assert not same(made[engine], before)
    assert (pixels(render(engine, video, conditioning)) == before).all()
