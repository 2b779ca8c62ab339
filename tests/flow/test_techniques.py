"""Techniques as a caller asks for them: in the result's parameters, in its warnings, in its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.flow.conftest import Runner, small
from tests.kits import distilled_kit, weights_kit
from tests.kits.engine_kit import PLANNER, demo_source
from tests.kits.hub_server import HubServer
from worker.base.stop import Stop
from worker.engine import Engine

TURBO = {"quality_preset": "turbo"}
HYBRID = {"quality_preset": "turbo", "turbo_variant": "hybrid"}


@pytest.fixture(scope="module")
def deep_engine() -> Engine:
    """Several blocks, and LoRAs for turbo as the real models have."""
    engine = Engine(demo_source(3), distilled_kit.catalogue(), PLANNER)
    engine.preload(["t2v"], Stop())
    return engine


@pytest.fixture
def hub(deep_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with weights_kit.served(monkeypatch) as server:
        distilled_kit.serve(server, deep_engine.models["t2v"].components)
        yield server


@pytest.fixture
def deep(run: Runner, deep_engine: Engine, hub: HubServer, tmp_path: Path) -> Runner:
    loras = distilled_kit.store(tmp_path / "models", hub)
    return Runner(replace(run.worker, engine=deep_engine, loras=loras))


@pytest.mark.slow  # tests/unit/engine/test_turbo.py has both
def test_turbo_fetches_its_loras_once_and_leaves_the_next_video_as_it_was(deep: Runner, hub: HubServer) -> None:
    requests = [small(), small(**TURBO), small(), small(**HYBRID), small()]
    plain, turbo, after, hybrid, last = deep({"job_request_params": requests})["videos"]
    assert {plain["sha256"], after["sha256"], last["sha256"]} == {plain["sha256"]}
    assert len({plain["sha256"], turbo["sha256"], hybrid["sha256"]}) == 3
    assert turbo["parameters"]["turbo_variant"] == "full"
    assert turbo["parameters"]["distilled_weights"] == distilled_kit.REPO
    assert turbo["parameters"]["num_inference_steps"] == 4
    assert hybrid["parameters"]["turbo_variant"] == "hybrid"
    assert (hybrid["parameters"]["guidance_scale"], hybrid["parameters"]["guidance_scale_2"]) == (4.0, 1.0)
    assert len(hub.gets(".safetensors")) == 2
    assert (deep(small(**TURBO), job_id="again")["videos"][0]["sha256"]) == turbo["sha256"]
    assert len(hub.gets(".safetensors")) == 2


def test_without_its_loras_turbo_is_unavailable_and_the_other_videos_are_made(deep: Runner, hub: HubServer) -> None:
    del hub.repos[distilled_kit.REPO]
    failed, made = deep({"job_request_params": [small(**TURBO), small()]})["videos"]
    assert made["status"] == "completed"
    error = failed["error"]
    assert (error["code"], error["retryable"]) == ("model_unavailable", True)
    assert error["path"] == "job_request_params[0].quality_preset"
    assert "python -m builder.prepare --turbo" in error["message"]


def test_the_variant_of_turbo_needs_turbo(deep: Runner) -> None:
    answer = deep({"job_request_params": [small(), small(turbo_variant="hybrid")]})
    error = json.loads(answer["error"])
    assert (error["code"], error["path"]) == ("invalid_request", "job_request_params[1].turbo_variant")


def test_turbo_of_the_5b_model_is_unsupported(deep: Runner) -> None:
    error = json.loads(deep(small(model="5b", **TURBO))["error"])
    assert (error["code"], error["path"]) == ("unsupported", "quality_preset")


@pytest.mark.slow  # tests/unit/engine/test_step_cache.py has both
def test_the_step_cache_is_told_and_changes_its_video_alone(deep: Runner) -> None:
    steps = {"num_inference_steps": 12}
    modes = ("off", "fast", "off")
    exact, fast, after = deep({"job_request_params": [small(**steps, step_cache=mode) for mode in modes]})["videos"]
    assert exact["sha256"] == after["sha256"]
    assert exact["sha256"] != fast["sha256"]
    assert exact["parameters"]["step_cache"] == "off"
    assert "step_cache_share" not in exact["parameters"]
    assert fast["parameters"]["step_cache"] == "fast"
    assert 0 < fast["parameters"]["step_cache_share"] < 1
    assert fast["warnings"] == []


@pytest.mark.slow
def test_the_step_cache_is_off_with_turbo_and_the_caller_is_told(deep: Runner) -> None:
    plain, asked = deep({"job_request_params": [small(**TURBO), small(**TURBO, step_cache="fast")]})["videos"]
    assert asked["parameters"]["step_cache"] == "off"
    assert [line for line in asked["warnings"] if line.startswith("job_request_params[1].step_cache: off, ")]
    assert not [line for line in plain["warnings"] if "step_cache" in line]
    assert asked["sha256"] == plain["sha256"]


def test_a_step_cache_of_another_name_is_refused(deep: Runner) -> None:
    error = json.loads(deep(small(step_cache="turbo"))["error"])
    assert (error["code"], error["path"]) == ("invalid_request", "step_cache")


def test_the_built_in_model_says_why_it_has_no_step_cache(run: Runner) -> None:
    (video,) = run(small(step_cache="balanced"))["videos"]
    assert video["status"] == "completed"
    assert "single block" in video["warnings"][0]
    assert video["parameters"]["step_cache"] == "off"
