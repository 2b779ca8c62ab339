"""What tests of encoders share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """No encode, good or bad, leaves a thread, a process (zombies count) or a descriptor behind."""
    process = psutil.Process()
    threads, descriptors = set(threading.enumerate()), process.num_fds()
    children = set(process.children(recursive=True))  # another test's fork server may be among them
    yield
    assert set(threading.enumerate()) <= threads  # those of earlier tests may end meanwhile
    assert set(process.children(recursive=True)) <= children
    assert process.num_fds() <= descriptors


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder
