"""Tests that need a CUDA device: `make test-gpu`. Each is short and stands alone."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def a_device_of_its_own() -> Iterator[None]:
    """No test sees the memory of the one before."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    yield
    gc.collect()
    torch.cuda.empty_cache()
