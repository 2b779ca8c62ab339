"""A hub with tiny models, and an empty model cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.hub_server import HubServer
from tests.kits.lora_store import home as home  # fixtures
from tests.kits.lora_store import store as store
from tests.kits.weights_kit import served


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with served(monkeypatch) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "models"
