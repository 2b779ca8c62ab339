"""What tests of several stores of a delivery share."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.kits.spool_kit import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    """Runs something beside the test, which waits for the end of it."""
    with ThreadPoolExecutor() as pool:
        yield pool
