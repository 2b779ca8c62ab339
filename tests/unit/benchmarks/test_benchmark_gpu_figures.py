"""The arithmetic of `benchmarks.gpu`: floors, videos told from some of their steps, what counts, and the verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UniPCMultistepScheduler

from benchmarks import gpu_rates, gpu_report, gpu_rows, gpu_videos
from benchmarks.gpu_models import SCALES, write_model
from benchmarks.gpu_rates import Rates
from benchmarks.gpu_report import Line
from benchmarks.gpu_rows import ROWS, Measured, Row
from worker.engine.techniques import attention

BY_NAME = {row.name: row for row in ROWS}
TINY, FULL, LARGE = SCALES["tiny"], SCALES["480p"], SCALES["720p"]
# The rate that an H200 reached in bf16; the others round.
RATES = Rates(790e12, 1580e12, 400e12, named={"exact": "bf16", "quantized": "fp8", "vae": "TF32"})


@pytest.mark.parametrize(
    ("scale", "forwards", "seconds"), [(FULL, 80, 170), (LARGE, 80, 661), (FULL, 4, 8.5), (LARGE, 4, 33)]
)
def test_the_floor_is_the_counted_work_at_the_measured_rate(scale: Any, forwards: int, seconds: float) -> None:
    found = gpu_rates.denoise_floor_s(scale, RATES, forwards=forwards, quantized=False)
    assert found == pytest.approx(seconds, rel=0.01)


def test_quantised_arithmetic_lowers_the_floor_of_linear_layers_alone() -> None:
    exact, quantized = (gpu_rates.denoise_floor_s(FULL, RATES, forwards=1, quantized=each) for each in (False, True))
    attention_s = 40 * 4 * 32_760 * (32_760 + 512) * 5120 / RATES.exact
    assert quantized == pytest.approx(attention_s + (exact - attention_s) / 2)
    without = replace(RATES, quantized=None)
    assert gpu_rates.denoise_floor_s(FULL, without, forwards=1, quantized=True) == pytest.approx(exact)


def test_the_floors_of_the_vae_are_those_of_the_published_one_alone() -> None:
    assert gpu_rates.decode_floor_s(LARGE, RATES) == pytest.approx(639e12 / RATES.vae, rel=0.01)
    assert gpu_rates.decode_floor_s(TINY, RATES) is None
    assert gpu_rates.encode_floor_s(TINY, RATES) is None


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_measured_steps_lie_half_on_each_expert(steps: int) -> None:
    part = gpu_rows.request(BY_NAME["exact"], FULL, take=1, steps=2 * steps, even=True)
    kinds = gpu_videos.kinds_of_steps(BY_NAME["exact"], part)
    assert kinds == [("high", True)] * steps + [("low", True)] * steps


def test_a_whole_video_has_26_steps_on_the_high_noise_expert_and_the_cache_leaves_ends_and_first_steps_alone() -> None:
    exact, cached = BY_NAME["exact"], BY_NAME["cache_fast"]
    counted = Counter(gpu_videos.kinds_of_steps(exact, gpu_rows.request(exact, FULL, take=1)))
    assert counted == {("high", True): 26, ("low", True): 14}
    ends = Counter(gpu_videos.kinds_of_steps(cached, gpu_rows.request(cached, FULL, take=1)))
    assert ends == {("high", True): 4, ("high", False): 22, ("low", False): 9, ("low", True): 5}


def test_the_schedule_of_the_kinds_is_the_one_of_the_models_own_scheduler(tmp_path: Path) -> None:
    write_model(TINY, tmp_path)
    config = UniPCMultistepScheduler.load_config(tmp_path / "scheduler")
    scheduler = UniPCMultistepScheduler.from_config(config, flow_shift=12.0)
    scheduler.set_timesteps(40)
    assert sum(timestep >= 875 for timestep in scheduler.timesteps.tolist()) == 26


def test_a_video_told_from_part_of_its_steps_is_their_medians_and_what_is_beside_them_once() -> None:
    row = BY_NAME["cache_fast"]
    part = gpu_rows.request(row, FULL, take=1, steps=6, even=True)
    whole = gpu_rows.request(row, FULL, take=1)
    # In full: 5, and 3.5 and 4.5 of the other expert. 2 s beside the steps, 3 s before and behind generating.
    measured = Measured(
        row.name, steps_s=[5.0, 1.0, 2.0, 3.5, 1.0, 4.5], timings={"generate": 19.0, "total": 22.0}, video_s=22.0
    )
    found = gpu_videos.whole_of(measured, row, part, whole)
    assert found.generate_s == pytest.approx(2 + 4 * 5 + 22 * 1.5 + 9 * 1.0 + 5 * 4)
    assert found.video_s == pytest.approx(3 + found.generate_s)


def test_a_row_counts_only_where_the_worker_says_that_it_did_it() -> None:
    row = BY_NAME["quantized"]
    assert gpu_rows.not_in_effect(row, {"quantized_compute": "int8"}) is None
    assert gpu_rows.not_in_effect(row, {"quantized_compute": "off"}) == "not in effect: quantized_compute was off"
    assert gpu_rows.not_in_effect(row, {}) == "not in effect: quantized_compute was None"


def test_every_backend_of_the_worker_is_a_row_that_nothing_else_satisfies() -> None:
    for backend in attention.BACKENDS:
        row = BY_NAME[backend.name]
        assert gpu_rows.not_in_effect(row, {"attention_backend": backend.name}) is None
        assert gpu_rows.not_in_effect(row, {"attention_backend": "another"}) is not None


def line(name: str, ours: Measured, stock_s: float | None = None, floor_s: float | None = None) -> Line:
    stock = None if stock_s is None else Measured(name, video_s=stock_s)
    return Line(BY_NAME[name], ours, stock, floor_s)


@pytest.mark.parametrize(
    ("scale", "name", "found_s", "met"),
    [
        (FULL, "turbo", 13.0, True),
        (FULL, "turbo", 13.01, False),
        (LARGE, "turbo", 42.0, True),
        (LARGE, "turbo", 42.01, False),
        (LARGE, "decode", 4.0, True),
        (LARGE, "decode", 4.01, False),
    ],
)
def test_a_target_in_seconds_is_met_at_its_limit_and_missed_above_it(
    scale: Any, name: str, found_s: float, met: bool
) -> None:
    told = line(name, Measured(name, video_s=found_s))
    gpu_report.judge(told, scale, "NVIDIA H200")
    (verdict,) = told.verdicts
    assert told.missed is not met
    assert verdict.endswith(": met" if met else ": missed by 0.01 s")


@pytest.mark.parametrize(("generate_s", "verdict"), [(200.0, "met"), (213.0, "missed"), (220.0, "missed")])
def test_exact_attention_is_held_to_its_seconds_and_to_the_floor(generate_s: float, verdict: str) -> None:
    told = line("exact", Measured("exact", video_s=250.0, generate_s=generate_s), floor_s=168.0)
    gpu_report.judge(told, FULL, "NVIDIA H200")
    in_seconds, of_floor = told.verdicts
    assert in_seconds.startswith("generate <= 213 s: " + ("met" if generate_s <= 213 else "missed by 7.00 s"))
    assert of_floor.startswith(f"<= 1.25 x floor: {verdict}")


def test_seconds_of_another_gpu_are_not_judged_but_diffusers_is_always_to_be_beaten() -> None:
    faster = line("turbo", Measured("turbo", video_s=30.0), stock_s=33.0)
    gpu_report.judge(faster, FULL, "NVIDIA H100 80GB HBM3")
    assert faster.verdicts == ["video <= 13 s is for an H200", "faster than Diffusers: met"]
    assert not faster.missed
    slower = line("turbo", Measured("turbo", video_s=30.0), stock_s=24.0)
    gpu_report.judge(slower, FULL, "NVIDIA H100 80GB HBM3")
    assert slower.verdicts[1] == "faster than Diffusers: missed by 0.25 x its time"
    assert slower.missed


def test_the_tiny_size_and_rows_without_figures_are_not_judged() -> None:
    for told, scale in (
        (line("turbo", Measured("turbo", video_s=99.0), stock_s=1.0), TINY),
        (line("turbo", Measured("turbo", video_s=99.0, reason="not in effect: a was b"), stock_s=1.0), FULL),
    ):
        gpu_report.judge(told, scale, "NVIDIA H200")
        assert told.verdicts == []
        assert not told.missed


def test_the_table_tells_what_was_extrapolated_left_out_and_not_measured() -> None:
    cached = Measured(
        "cache_fast", video_s=100.0, generate_s=90.0, extrapolated=3, peak_bytes=80_000_000_000,
        parameters={"step_cache_share": 0.5, "attention_backend": "sage"},
    )  # fmt: skip
    text = gpu_report.table([line("cache_fast", cached, 200.0, 60.0), line("sage", Measured("sage", reason="no sage"))])
    cells = "| sage |  | 100.00 (from 2 x 3 steps) | 60.00 | 1.50 | 200.00 | 2.00 | 80.0 |"
    assert f"| cache_fast (50% of passes left out) {cells}" in text
    assert text.endswith("Not measured:\nsage: no sage")


def test_a_backend_whose_package_is_not_here_is_passed_over_before_anything_is_loaded() -> None:
    backend = attention.Backend("sage", missing=lambda _: "not installed")
    cpu = torch.device("cpu")
    assert gpu_rows.not_to_be_had(Row("sage", "guided", backend=backend), cpu) == "not installed"
    assert gpu_rows.not_to_be_had(BY_NAME["native"], cpu) is None
    assert gpu_rows.not_to_be_had(BY_NAME["turbo"], cpu) is None
