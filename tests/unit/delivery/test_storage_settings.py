"""Which storage the settings choose, and what stops the worker at start."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from worker.base.errors import SettingsError
from worker.base.settings import Settings, load
from worker.base.storage_settings import MAX_PRESIGN_EXPIRY_S
from worker.delivery.storage import open_storage, video_key
from worker.delivery.storage.local import LocalStorage
from worker.delivery.storage.spaces import SpacesStorage

SPACES = {
    "DIGITAL_OCEAN_ENDPOINT_URL": "https://nyc3.digitaloceanspaces.com",
    "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": "access-key-value",
    "DIGITAL_OCEAN_BUCKET_SECRET_KEY": "secret-key-value",
    "DIGITAL_OCEAN_BUCKET_NAME": "videos",
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name in (*SPACES, "DIGITAL_OCEAN_BUCKET_URL", "DIGITAL_OCEAN_REGION"):
        monkeypatch.delenv(name, raising=False)


def configured(monkeypatch: pytest.MonkeyPatch, **more: str) -> Settings:
    for name, value in {**SPACES, **more}.items():
        monkeypatch.setenv(name, value)
    return load()


def test_no_bucket_means_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_DIR", "somewhere")
    storage = open_storage(load())
    assert isinstance(storage, LocalStorage)
    assert storage.describe() == "folder somewhere"


def test_four_variables_mean_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(configured(monkeypatch))
    assert isinstance(storage, SpacesStorage)
    assert storage.describe() == "bucket videos in nyc3"


def test_region_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_storage(configured(monkeypatch, DIGITAL_OCEAN_REGION="ams3")).describe() == "bucket videos in ams3"


def test_bucket_from_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SPACES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("DIGITAL_OCEAN_BUCKET_NAME")
    monkeypatch.setenv("DIGITAL_OCEAN_ENDPOINT_URL", "https://clips.fra1.digitaloceanspaces.com/")
    assert open_storage(load()).describe() == "bucket clips in fra1"


@pytest.mark.parametrize("missing", sorted(SPACES))
def test_settings_in_part_stop_the_worker(missing: str) -> None:
    # Built past `load`, which refuses this first: the storage must not fall back to the folder by itself.
    fields = {
        "DIGITAL_OCEAN_ENDPOINT_URL": "storage_endpoint_url",
        "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": "storage_access_key",
        "DIGITAL_OCEAN_BUCKET_SECRET_KEY": "storage_secret_key",
        "DIGITAL_OCEAN_BUCKET_NAME": "storage_bucket",
    }
    settings = Settings(**{field: SPACES[name] for name, field in fields.items() if name != missing})
    if missing == "DIGITAL_OCEAN_BUCKET_NAME":
        with pytest.raises(SettingsError):
            SpacesStorage.from_settings(settings)
    else:
        with pytest.raises(SettingsError):
            open_storage(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DIGITAL_OCEAN_BUCKET_NAME", "https://videos.nyc3.digitaloceanspaces.com"),
        ("DIGITAL_OCEAN_BUCKET_NAME", "a/b/c"),
        ("DIGITAL_OCEAN_BUCKET_NAME", "ab"),
        ("DIGITAL_OCEAN_BUCKET_NAME", "b" * 64),
        ("DIGITAL_OCEAN_REGION", "new york"),
        ("DIGITAL_OCEAN_ENDPOINT_URL", "https://storage.example.com:port"),
        ("DIGITAL_OCEAN_ENDPOINT_URL", "https://bad_^host.example.com"),
    ],
)
def test_unusable_values_stop_the_worker(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    settings = configured(monkeypatch, **{variable: value})
    with pytest.raises(SettingsError, match=variable) as caught:
        open_storage(settings)
    assert "secret-key-value" not in str(caught.value)
    assert "access-key-value" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["abc", "b" * 63])
def test_bucket_name_lengths_that_are_allowed(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    assert bucket in open_storage(configured(monkeypatch, DIGITAL_OCEAN_BUCKET_NAME=bucket)).describe()


@pytest.mark.parametrize("expiry_s", ["1", str(MAX_PRESIGN_EXPIRY_S)])
def test_presign_expiry_bounds_are_allowed(monkeypatch: pytest.MonkeyPatch, expiry_s: str) -> None:
    assert configured(monkeypatch, PRESIGN_EXPIRY_S=expiry_s).presign_expiry_s == int(expiry_s)


@pytest.mark.parametrize("expiry_s", ["0", str(MAX_PRESIGN_EXPIRY_S + 1), "-1", "1.5"])
def test_presign_expiry_beyond_the_bounds_stops_the_worker(monkeypatch: pytest.MonkeyPatch, expiry_s: str) -> None:
    with pytest.raises(SettingsError, match="PRESIGN_EXPIRY_S"):
        configured(monkeypatch, PRESIGN_EXPIRY_S=expiry_s)


def test_seven_days_are_what_the_signature_allows() -> None:
    assert MAX_PRESIGN_EXPIRY_S == 604_800


def test_the_key_is_that_of_the_contract() -> None:
    assert video_key("abc-123", 0, datetime.date(2026, 11, 21)) == "videos/2026-11-21/abc-123/0"
    assert video_key("J.o_b", 15, datetime.date(2027, 1, 2)) == "videos/2027-01-02/J.o_b/15"


def test_describe_holds_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shown = open_storage(configured(monkeypatch)).describe()
    assert "key-value" not in shown
