"""Settings as a worker reads them from variables of its environment."""

from __future__ import annotations

import pytest

from worker.base.errors import SettingsError
from worker.base.settings import Settings, load

# The four variables of a storage: the field of each, and a text that sets it.
STORAGE = {
    "DIGITAL_OCEAN_ENDPOINT_URL": ("storage_endpoint_url", "https://fra1.digitaloceanspaces.com"),
    "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": ("storage_access_key", "ACCESS-KEY-1"),
    "DIGITAL_OCEAN_BUCKET_SECRET_KEY": ("storage_secret_key", "SECRET-KEY-1"),
    "DIGITAL_OCEAN_BUCKET_NAME": ("storage_bucket", "videos"),
}


def with_env(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load()


def problems(monkeypatch: pytest.MonkeyPatch, **variables: str) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        with_env(monkeypatch, **variables)
    return caught.value.problems


def storage_env(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Set these variables of the four, or all of them."""
    for name in names or STORAGE:
        monkeypatch.setenv(name, STORAGE[name][1])
