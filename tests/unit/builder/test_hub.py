"""RunPod's Hub files: of the published form, and true to the settings, the payload and the memory plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder import hub
from worker.base import settings
from worker.base.settings import Settings, variables_of
from worker.request import CATALOGUE, Limits
from worker.request.parse import parse
from worker.request.plan import Planner
from worker.request.plan.gpus import from_name
from worker.request.plan.sizes import Shape

HUB = json.loads((hub.ROOT / ".runpod" / "hub.json").read_text(encoding="utf-8"))
TESTS = json.loads((hub.ROOT / ".runpod" / "tests.json").read_text(encoding="utf-8"))
ENV = {entry["key"]: entry["input"] for entry in HUB["config"]["env"]}

# As RunPod's publishing guide describes an input (docs.runpod.io/hub/publishing-guide): type -> what it may have beside
# the fields of all.
KINDS = {
    "string": {"options"},
    "huggingface": set(),
    "number": {"min", "max"},
    "boolean": {"trueValue", "falseValue"},
}
# The pools of docs.runpod.io/references/gpu-types, and the GPUs of ours that they hold.
POOLS = {
    "AMPERE_16": (),
    "AMPERE_24": ("RTX A5000", "RTX 3090"),
    "ADA_24": ("L4", "RTX 4090"),
    "ADA_32_PRO": ("RTX 5090",),
    "AMPERE_48": ("A40", "RTX A6000"),
    "ADA_48_PRO": ("L40", "L40S", "RTX 6000 Ada"),
    "AMPERE_80": ("A100 80GB",),
    "ADA_80_PRO": ("H100 80GB", "H100 NVL"),
    "HOPPER_141": ("H200",),
}
# What a caller sends who names no size: 480p, and the official one of the 5B model.
STANDARD = {"i2v": Shape(832, 480, 81), "t2v": Shape(832, 480, 81), "5b": Shape(1280, 704, 121)}


def sent(values: dict[str, Any]) -> dict[str, str]:
    """What RunPod puts into the environment for such values."""
    return {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in values.items()}


@pytest.fixture
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in Settings.model_fields:
        for variable in variables_of(name):
            monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def test_the_files_are_those_that_the_settings_give() -> None:
    assert hub.main(["--check"]) == 0


def test_a_file_that_is_out_of_date_is_named_and_then_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "ROOT", tmp_path)
    assert hub.main(["--check"]) == 1
    assert ".runpod/hub.json is out of date" in capsys.readouterr().err
    assert hub.main([]) == 0
    assert hub.main(["--check"]) == 0


def test_the_files_have_the_fields_of_the_publishing_guide() -> None:
    assert set(HUB) - {"iconUrl"} == {"title", "description", "type", "category", "config"}
    assert (HUB["type"], HUB["category"], HUB["config"]["runsOn"]) == ("serverless", "video", "GPU")
    assert set(HUB["config"]) == {
        *("runsOn", "containerDiskInGb", "gpuCount", "gpuIds", "allowedCudaVersions", "presets", "env"),
    }
    for preset in HUB["config"]["presets"]:
        assert set(preset) == {"name", "defaults"}
    for field in ENV.values():
        assert {"name", "type", "description"} <= set(field)
        assert set(field) <= {"name", "type", "description", "default", "advanced"} | KINDS[field["type"]]
        if "default" in field:
            assert isinstance(field["default"], {"number": int | float, "boolean": bool}.get(field["type"], str))
        assert all(set(option) == {"label", "value"} for option in field.get("options", ()))
    assert set(TESTS) == {"tests", "config"}
    assert set(TESTS["config"]) == {"gpuTypeId", "gpuCount", "allowedCudaVersions", "env"}
    for test in TESTS["tests"]:
        assert {"name", "input"} <= set(test) <= {"name", "input", "timeout"}


def test_every_variable_is_there_once_and_no_other() -> None:
    wanted = [variables_of(name)[0] for name in Settings.model_fields if name not in hub.SET_BY_RUNPOD]
    assert sorted(entry["key"] for entry in HUB["config"]["env"]) == sorted([*wanted, "RUNPOD_INIT_TIMEOUT"])


def test_what_the_platform_sets_is_not_offered() -> None:
    """An emptied RUNPOD_WEBHOOK_GET_JOB would make the worker believe that it is on a developer's machine."""
    for name in hub.SET_BY_RUNPOD:
        assert name in Settings.model_fields
        assert variables_of(name)[0] not in ENV


def test_every_secret_is_empty_by_default() -> None:
    secrets = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert len(secrets) >= 4
    for name in set(secrets) - hub.SET_BY_RUNPOD:
        assert "default" not in ENV[variables_of(name)[0]], name


def test_the_offered_defaults_are_the_worker_s(empty_environment: pytest.MonkeyPatch) -> None:
    before = settings.load()
    for key, value in sent({key: field["default"] for key, field in ENV.items() if "default" in field}).items():
        empty_environment.setenv(key, value)
    assert settings.load() == before


@pytest.mark.parametrize("key", [key for key, field in ENV.items() if "options" in field])
def test_every_option_can_be_read(key: str, empty_environment: pytest.MonkeyPatch) -> None:
    for option in ENV[key]["options"]:
        empty_environment.setenv(key, option["value"])
        settings.load()
    assert ENV[key]["default"] in [option["value"] for option in ENV[key]["options"]]


@pytest.mark.parametrize("key", [key for key, field in ENV.items() if field["type"] == "boolean"])
def test_both_positions_of_a_switch_can_be_read(key: str, empty_environment: pytest.MonkeyPatch) -> None:
    read = []
    for value in (ENV[key]["trueValue"], ENV[key]["falseValue"]):
        empty_environment.setenv(key, value)
        (name,) = [name for name in Settings.model_fields if key in variables_of(name)]
        read.append(getattr(settings.load(), name))
    assert read == [True, False]


@pytest.mark.parametrize("preset", hub.PRESETS, ids=lambda preset: preset.name)
def test_a_preset_loads_and_its_gpus_hold_the_standard_video(
    preset: hub.Preset, empty_environment: pytest.MonkeyPatch
) -> None:
    assert set(preset.env) <= set(ENV)
    for key, value in sent(dict(preset.env)).items():
        empty_environment.setenv(key, value)
    loaded = settings.load()
    assert loaded.preload
    assert preset.gpus
    specs = {spec.key: spec for spec in CATALOGUE}
    for name in preset.gpus:
        gpu = from_name(name)
        for key in loaded.preload:
            shape = STANDARD[key]
            made = Planner(gpu, loaded).plan(specs[key], shape)
            assert made.estimated_peak_bytes <= gpu.budget_bytes
            assert shape.width * shape.height <= loaded.max_pixels
            assert shape.num_frames <= loaded.max_frames


def test_the_presets_cover_the_gpus_that_the_listing_offers() -> None:
    offered = HUB["config"]["gpuIds"].split(",")
    pools = [name for name in offered if not name.startswith("-")]
    assert set(pools) <= set(POOLS)
    within = {gpu for pool in pools for gpu in POOLS[pool]}
    taken = {gpu for preset in hub.PRESETS for gpu in preset.gpus}
    assert taken <= within
    assert {"H100 80GB", "A100 80GB", "L40S", "RTX 4090"} == taken
    assert [preset["name"] for preset in HUB["config"]["presets"]] == [preset.name for preset in hub.PRESETS]


def test_the_gpus_run_the_cuda_of_the_locked_torch() -> None:
    lock = (hub.ROOT / "builder" / "requirements-cuda.txt").read_text()
    locked = lock.partition("cuda-toolkit==")[2].split(".")[:2]
    versions = [tuple(map(int, version.split("."))) for version in HUB["config"]["allowedCudaVersions"]]
    assert min(versions) == tuple(map(int, locked))
    assert TESTS["config"]["allowedCudaVersions"] == HUB["config"]["allowedCudaVersions"]


def test_the_weights_fit_the_disk_where_there_is_no_volume() -> None:
    """126 GB of one A14B model as published, the image, and a tenth that the SDK's start-up check wants free."""
    assert HUB["config"]["containerDiskInGb"] >= (126 + 8) / 0.9


def test_the_hub_s_jobs_are_good_payloads(empty_environment: pytest.MonkeyPatch) -> None:
    for variable in TESTS["config"]["env"]:
        empty_environment.setenv(variable["key"], variable["value"])
    loaded = settings.load()
    assert loaded.model_profile == "demo"
    limits = Limits(loaded.max_videos_per_job, loaded.max_pixels, loaded.max_frames)
    for test in TESTS["tests"]:
        job = parse(test["input"], default_job_id="hub-1", limits=limits)
        assert job.videos
        assert all(not video.warnings for video in job.videos)
