"""The seconds of an estimate lie around what was measured, here and by others; which GPUs and plans have one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.kits.request_kit import IMAGE, LAST, video_of
from worker.base.settings import Settings
from worker.request import plan as memory
from worker.request.catalogue import I2V_A14B, T2V_A14B, find
from worker.request.plan import Gpu, MemoryPlan, Planner, Shape, duration
from worker.request.plan.duration import Span

SMALL = Shape(832, 480, 81)
H100, H200, L40S = (memory.from_name(name) for name in ("H100 80GB", "H200", "L40S"))


def made(gpu: Gpu, plan: MemoryPlan | None = None, **fields: Any) -> duration.Estimate:
    video = video_of(**{"width": 832, "height": 480, **fields})
    spec = find(video.model, video.mode)
    assert spec is not None
    if plan is None:
        shape = Shape(video.width or 0, video.height or 0, video.num_frames)
        plan = Planner(gpu, Settings()).plan(spec, shape)
    answer = duration.of_request(video, spec, gpu, plan)
    assert answer is not None
    return answer


def test_segments_take_what_their_clips_take_and_load_each_model_once() -> None:
    plan = Planner(L40S, Settings()).plan(T2V_A14B, SMALL)
    whole, first = made(L40S, plan, segments=[{}] * 3), made(L40S, plan)
    second = made(L40S, plan, reference_image_url=IMAGE)
    assert whole.forwards == first.forwards + 2 * second.forwards
    assert whole.total.high == pytest.approx(first.total.high + 2 * second.total.high)
    assert whole.load == first.load.times(2)
    assert made(L40S, plan, segments=[{}] * 3, reference_image_url=IMAGE).load == second.load


def test_a_picture_takes_a_third_of_the_work_of_a_video_and_all_of_it_in_tiles() -> None:
    picture, video = duration.image_encode_flop(I2V_A14B, SMALL), duration.encode_flop(I2V_A14B, SMALL)
    assert picture / video == pytest.approx(0.33, abs=0.01)
    plan = Planner(H100, Settings()).plan(I2V_A14B, SMALL)
    plain = made(H100, plan, reference_image_url=IMAGE)
    tiled = made(H100, dataclasses.replace(plan, vae_tiling=True), reference_image_url=IMAGE)
    both_ends = made(H100, plan, reference_image_url=IMAGE, last_image_url=LAST)
    assert plain.stages["generate"].high < both_ends.stages["generate"].high < tiled.stages["generate"].high
    more_s = (video - picture) / (989e12 / 2 * duration.HOPPER_VAE_SHARE[0])
    assert tiled.stages["generate"].high - plain.stages["generate"].high == pytest.approx(more_s)


@pytest.mark.parametrize(
    ("gpu", "fields", "published_s"),
    [
        (H100, {"num_inference_steps": 40}, 207),  # LightX2V: 5.18 s a step, the best that is known
        (H200, {}, 264),  # SGLang
        (H200, {"quality_preset": "turbo"}, 14),  # LightX2V
        (H200, {"quality_preset": "turbo", "width": 1280, "height": 720}, 44),  # LightX2V
    ],
    ids=str,
)
def test_the_best_published_times_lie_within_the_range(gpu: Gpu, fields: dict[str, Any], published_s: float) -> None:
    total = made(gpu, **fields).total
    assert total.low * 0.95 <= published_s <= total.high * 1.05


@pytest.mark.parametrize(
    ("fields", "published_s"),
    [({}, 391), ({}, 327), ({"width": 1280, "height": 720}, 1042)],  # Diffusers; the official repository, twice
)
def test_what_others_take_is_no_less_than_the_range(fields: dict[str, Any], published_s: float) -> None:
    assert made(H100, num_inference_steps=40, **fields).total.high <= published_s * 1.05


def _measured() -> list[tuple[str, str, str, float]]:
    lines = [
        (file.parent.name, json.loads(line))
        for file in sorted((Path(__file__).parents[3] / "benchmarks/results").glob("h200-*/results.jsonl"))
        for line in file.read_text().splitlines()
    ]
    return [(name, line["stage"], line["what"], line["value"]) for name, line in lines]


@pytest.mark.parametrize(("stage", "size"), [("job480", (832, 480)), ("job720", (1280, 720))])
def test_a_step_that_was_measured_lies_within_the_range(stage: str, size: tuple[int, int]) -> None:
    steps = [value for _, at, what, value in _measured() if at == stage and what.startswith("step, s")]
    span = made(H200, num_inference_steps=40, width=size[0], height=size[1]).stages["generate"]
    assert len(steps) >= 2
    assert all(span.low <= 40 * step <= span.high for step in steps)


def test_a_decode_that_was_measured_lies_within_the_range() -> None:
    decodes = [value for _, at, what, value in _measured() if (at, what) == ("decode", "720p, fp32, s")]
    span = made(H200, width=1280, height=720).stages["encode"]
    assert len(decodes) >= 2
    assert all(span.low <= each <= span.high for each in decodes)


def test_no_estimate_is_faster_than_the_measured_rate_of_an_h200() -> None:
    """790 TFLOP/s of bf16: 212 s and 826 s for 50 steps with guidance."""
    assert made(H200).stages["generate"].low > 212
    assert made(H200, width=1280, height=720).stages["generate"].low > 826


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A40", 150),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA RTX 6000 Ada Generation", 364),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", 504),
    ],
)
def test_a_gpu_is_known_by_the_name_that_torch_gives(name: str, tflops: float) -> None:
    speed = duration.speed_of(name)
    assert speed is not None
    assert speed.tflops == tflops


@pytest.mark.parametrize(
    ("name", "is_measured"), [("NVIDIA H200", True), ("NVIDIA H100 80GB HBM3", True), ("NVIDIA H100 PCIe", False)]
)
def test_the_chips_that_were_measured_have_a_narrower_range(name: str, is_measured: bool) -> None:
    speed = duration.speed_of(name)
    assert speed is not None
    assert (speed.denoise_share == duration.HOPPER_DENOISE_SHARE) is is_measured


@pytest.mark.parametrize("gpu", memory.GPUS, ids=lambda gpu: gpu.name)
def test_every_gpu_of_the_memory_table_has_a_speed(gpu: Gpu) -> None:
    assert duration.speed_of(gpu.name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GH200 480GB",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "Tesla V100",
        "NVIDIA A4000",
        "cpu",
        "",
    ],
)
def test_another_gpu_has_no_estimate(name: str) -> None:
    assert duration.speed_of(name) is None
    gpu = dataclasses.replace(H100, name=name)
    plan = Planner(gpu, Settings()).plan(T2V_A14B, SMALL)
    assert duration.of_request(video_of(), T2V_A14B, gpu, plan) is None


def test_the_demo_model_has_no_estimate() -> None:
    plan = Planner(H100, Settings()).plan(T2V_A14B, SMALL)
    demo = dataclasses.replace(T2V_A14B, version="demo")
    assert duration.of_request(video_of(), demo, H100, plan) is None
    fused = dataclasses.replace(T2V_A14B, variant="turbo")
    assert duration.of_request(video_of(), fused, H100, plan) is not None


def planned(residency: str, **others: Any) -> MemoryPlan:
    base = Planner(H200, Settings()).plan(T2V_A14B, SMALL)
    place = "resident" if residency == "resident" else "offloaded"
    return dataclasses.replace(base, residency=residency, text_encoder=place, **others)


def test_offloading_costs_what_it_moves() -> None:
    order = ("resident", "swap", "group_offload", "sequential")
    low = [made(H200, planned(residency)).total.low for residency in order]
    assert low[0] < low[1]
    # Beside a pass of seconds the streamed blocks cost nothing; beside one of 4 distilled steps at 256x256 they do.
    assert low[2] == pytest.approx(low[0], rel=0.01)
    assert low[3] > low[0] + 100 * 28.5 / 3.01
    tiny = {"width": 256, "height": 256, "num_frames": 5, "quality_preset": "turbo"}
    assert (
        made(H200, planned("group_offload"), **tiny).stages["generate"].low
        > 4 * made(H200, planned("resident"), **tiny).stages["generate"].low
    )


def test_swapped_weights_come_once_a_video() -> None:
    plain, swapped = made(H200, planned("resident")), made(H200, planned("swap"))
    for stage, gigabytes in (("text", 11.36), ("generate", 57.2), ("encode", 0.51)):
        moved = swapped.stages[stage].low - plain.stages[stage].low
        assert moved == pytest.approx(gigabytes / 50, rel=0.02)
    offloaded = made(H200, dataclasses.replace(planned("resident"), text_encoder="offloaded"))
    assert offloaded.stages["text"] == swapped.stages["text"]


def test_tiles_take_twice_the_time_of_decoding() -> None:
    plain, tiled = made(L40S, planned("resident")), made(L40S, planned("resident", vae_tiling=True))
    assert tiled.stages["encode"].high == pytest.approx(2 * plain.stages["encode"].high)


def test_image_to_video_encodes_the_conditioning_video_first() -> None:
    text = made(H100).stages["generate"]
    image = made(H100, reference_image_url=IMAGE).stages["generate"]
    assert 0 < image.low - text.low < 0.02 * text.low


def test_loading_is_that_of_the_published_and_the_prepared_weights() -> None:
    assert made(H100).load.low == pytest.approx(69e9 / 400e6, rel=0.02)
    assert made(H100).load.high == pytest.approx(126e9 / 200e6, rel=0.02)
    fp8 = made(memory.from_name("RTX 4090"))
    assert fp8.load.low == pytest.approx(40e9 / 400e6, rel=0.05)


def test_a_step_cache_may_save_and_may_not() -> None:
    plain, cached = made(H100).stages["generate"], made(H100, step_cache="balanced").stages["generate"]
    assert cached.low == pytest.approx(plain.low * 0.55)
    assert cached.high == plain.high
    turbo = {"quality_preset": "turbo"}
    assert made(H100, step_cache="fast", **turbo).stages == made(H100, **turbo).stages


def test_the_cost_is_that_of_the_seconds() -> None:
    assert duration.cost_usd(Span(360.0, 720.0), 3.5) == Span(pytest.approx(0.35), pytest.approx(0.70))


def test_a_size_that_is_not_settled_has_no_estimate() -> None:
    plan = Planner(H100, Settings()).plan(I2V_A14B, SMALL)
    video = video_of(reference_image_url=IMAGE)
    assert duration.of_request(video, I2V_A14B, H100, plan) is None
