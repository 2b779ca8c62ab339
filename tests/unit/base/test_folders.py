"""Where models and state lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.base import folders
from worker.base.folders import model_cache_dir, state_dir
from worker.base.settings import Settings, load


def with_env(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


@pytest.fixture(autouse=True)
def no_folder_is_named(monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> None:
    for variable in ("STATE_DIR", "MODEL_CACHE_DIR"):
        monkeypatch.delenv(variable)


@pytest.fixture
def pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The volume's place on a pod; the test makes the folder where the volume is mounted."""
    place = tmp_path / "workspace"
    monkeypatch.setattr(folders, "POD_VOLUME", place)
    return place


@pytest.fixture
def serverless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "runpod-volume"
    monkeypatch.setattr(folders, "SERVERLESS_VOLUME", place)
    return place


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_volumes_are_those_of_runpod() -> None:
    assert Path("/workspace") == folders.POD_VOLUME
    assert Path("/runpod-volume") == folders.SERVERLESS_VOLUME


def test_models_lie_on_the_first_volume_that_is_there(pod: Path, serverless: Path, home: Path) -> None:
    assert model_cache_dir(load()) == home / ".cache" / "videogen" / "models"
    serverless.mkdir()
    assert model_cache_dir(load()) == serverless / "models"
    pod.mkdir()
    assert model_cache_dir(load()) == pod / "models"


def test_a_file_in_the_place_of_a_volume_is_no_volume(pod: Path, serverless: Path, home: Path) -> None:
    pod.write_text("")
    assert model_cache_dir(load()) == home / ".cache" / "videogen" / "models"


def test_a_folder_that_was_named_is_used_as_it_is(
    pod: Path, serverless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod.mkdir()
    named = tmp_path / "elsewhere" / "models"
    assert model_cache_dir(with_env(monkeypatch, MODEL_CACHE_DIR=str(named))) == named


def test_a_folder_named_on_the_pods_volume_is_found_on_serverless(
    pod: Path, serverless: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_env(monkeypatch, MODEL_CACHE_DIR=str(pod / "cache" / "wan"))
    assert model_cache_dir(loaded) == home / ".cache" / "videogen" / "models"
    serverless.mkdir()
    assert model_cache_dir(loaded) == serverless / "cache" / "wan"
    pod.mkdir()
    assert model_cache_dir(loaded) == pod / "cache" / "wan"


def test_the_state_lies_beside_the_models_of_a_volume(pod: Path, serverless: Path, home: Path) -> None:
    assert state_dir(load()) == Path("./.state")
    serverless.mkdir()
    assert state_dir(load()) == serverless / "state"
    pod.mkdir()
    assert state_dir(load()) == pod / "state"


def test_the_state_lies_beside_a_named_cache(
    pod: Path, serverless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = with_env(monkeypatch, MODEL_CACHE_DIR=str(tmp_path / "data" / "models"))
    assert state_dir(loaded) == tmp_path / "data" / "state"


def test_a_state_folder_that_was_named(pod: Path, serverless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pod.mkdir()
    assert state_dir(with_env(monkeypatch, STATE_DIR="/data/state")) == Path("/data/state")
