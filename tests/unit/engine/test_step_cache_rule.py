"""Where the step cache may be used: the steps that are computed in full, the memory plan, a model of one block."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.engine_kit import PLANNER, demo_source, render, request
from worker.engine import Engine
from worker.engine.techniques.step_cache import in_full
from worker.request.catalogue import T2V_A14B
from worker.request.plan import Shape
from worker.weights.sources import demo


@pytest.mark.parametrize(
    ("fields", "counted"),
    [({}, False), ({"step_cache": "fast"}, True), ({"step_cache": "fast", "quality_preset": "turbo"}, False)],
)
def test_the_memory_plan_counts_the_cache(fields: dict[str, Any], counted: bool) -> None:
    assert Shape.of(request(**fields), T2V_A14B).step_cache == counted


def test_a_model_of_one_block_runs_without_it_and_says_so() -> None:
    engine = Engine(demo_source(), demo.catalogue(), PLANNER)
    rendering = render(engine, request(step_cache="balanced"))
    assert rendering.parameters["step_cache"] == "off"
    assert "single block" in rendering.warnings[0]


@pytest.mark.parametrize(
    ("steps", "first_cached", "last_cached"),
    [(3, 1, 1), (10, 1, 8), (14, 1, 12), (16, 2, 13), (40, 4, 35), (50, 5, 44)],
)
def test_a_tenth_of_the_steps_is_computed_at_either_end(steps: int, first_cached: int, last_cached: int) -> None:
    may_be_left_out = [step for step in range(steps) if not in_full(step, steps)]
    assert may_be_left_out == list(range(first_cached, last_cached + 1))


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_so_few_steps_is_computed_whole(steps: int) -> None:
    assert all(in_full(step, steps) for step in range(steps))
    assert in_full(0, None)
