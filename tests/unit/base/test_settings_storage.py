"""The variables of the storage: the four that belong together, and their second names."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from tests.kits.settings_kit import STORAGE, problems, storage_env, with_env
from worker.base.settings import load, variables_of

SECOND_NAMES = {
    "SPACES_ENDPOINT_URL": "storage_endpoint_url",
    "SPACES_ENDPOINT": "storage_endpoint_url",
    "BUCKET_ENDPOINT_URL": "storage_endpoint_url",
    "SPACES_BUCKET_ACCESS_KEY": "storage_access_key",
    "SPACES_ACCESS_KEY": "storage_access_key",
    "SPACES_KEY": "storage_access_key",
    "BUCKET_ACCESS_KEY_ID": "storage_access_key",
    "SPACES_BUCKET_SECRET_KEY": "storage_secret_key",
    "SPACES_SECRET_KEY": "storage_secret_key",
    "SPACES_SECRET": "storage_secret_key",
    "BUCKET_SECRET_ACCESS_KEY": "storage_secret_key",
    "SPACES_BUCKET_NAME": "storage_bucket",
    "SPACES_BUCKET": "storage_bucket",
}


def test_the_four_storage_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not load().storage_is_remote
    storage_env(monkeypatch)
    loaded = load()
    assert loaded.storage_is_remote
    for variable, (field, text) in STORAGE.items():
        value = getattr(loaded, field)
        assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == text
        assert variables_of(field)[0] == variable


@pytest.mark.parametrize(("name", "field"), SECOND_NAMES.items())
def test_second_names(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    first = variables_of(field)[0]
    text = STORAGE[first][1]
    storage_env(monkeypatch, *(STORAGE.keys() - {first}))
    value = getattr(with_env(monkeypatch, **{name: text}), field)
    assert (value.get_secret_value() if isinstance(value, SecretStr) else value) == text


@pytest.mark.parametrize(
    ("name", "field"), [("SPACES_BUCKET_URL", "storage_public_url"), ("SPACES_REGION", "storage_region")]
)
def test_second_names_of_the_rest(monkeypatch: pytest.MonkeyPatch, name: str, field: str) -> None:
    assert getattr(with_env(monkeypatch, **{name: "https://cdn.test"}), field) == "https://cdn.test"


def test_the_first_name_wins_and_an_empty_one_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    assert with_env(monkeypatch, SPACES_BUCKET_NAME="other").storage_bucket == "videos"
    assert with_env(monkeypatch, DIGITAL_OCEAN_BUCKET_NAME="").storage_bucket == "other"


@pytest.mark.parametrize("missing", STORAGE)
def test_storage_without_one_of_the_four_refuses(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    storage_env(monkeypatch, *(STORAGE.keys() - {missing}))
    (line,) = problems(monkeypatch)
    assert f"set {missing} too" in line


@pytest.mark.parametrize("alone", STORAGE)
def test_storage_with_one_of_the_four_refuses(monkeypatch: pytest.MonkeyPatch, alone: str) -> None:
    storage_env(monkeypatch, alone)
    (line,) = problems(monkeypatch)
    assert all(name in line.split(", or unset")[0] for name in STORAGE.keys() - {alone})
    assert f"{alone}," not in line


def test_an_empty_storage_variable_is_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    storage_env(monkeypatch)
    (line,) = problems(monkeypatch, DIGITAL_OCEAN_BUCKET_NAME="")
    assert "set DIGITAL_OCEAN_BUCKET_NAME too" in line


def test_all_four_empty_is_local_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not with_env(monkeypatch, **dict.fromkeys(STORAGE, "")).storage_is_remote


def test_the_three_names_of_runpod_with_the_bucket_in_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = with_env(
        monkeypatch,
        BUCKET_ENDPOINT_URL="https://videos.fra1.digitaloceanspaces.com",
        BUCKET_ACCESS_KEY_ID="a",
        BUCKET_SECRET_ACCESS_KEY="b",
    )
    assert loaded.storage_bucket == "videos"
