"""The device that is here and what may be planned for it; a GPU is described in the place of one."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import psutil
import pytest
import torch

from worker.base.settings import Settings
from worker.engine import device
from worker.request.plan import Gpu, Planner

GIB = 1024**3


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Two GPUs of 80 GiB and 200 GiB of memory; answers the file of the container's limit, which is not there."""
    found = SimpleNamespace(name="a GPU", total_memory=80 * GIB, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: found)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=200 * GIB))
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "_CGROUP_LIMIT", limit)
    return limit


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("gpus", "share"), [(1, 1), (2, 2), ("all", 2), (8, 2)])
def test_the_gpus_of_a_worker_share_the_hosts_memory(gpus: Any, share: int) -> None:
    settings = Settings(gpus=gpus)
    expected = Planner(Gpu("a GPU", 80 * GIB, (9, 0)), settings, int(200 * GIB * 0.85) // share)
    assert device.detect() == torch.device("cuda", 0)
    assert device.planner_for(settings) == expected
    assert device.planner_for(settings, torch.device("cuda", 1)) == expected


@pytest.mark.parametrize(
    ("limit", "total"),
    [
        (f"{48 * GIB}\n", 48 * GIB),
        ("max\n", 200 * GIB),
        ("", 200 * GIB),
        (f"{900 * GIB}", 200 * GIB),
        (None, 200 * GIB),
    ],
)
def test_the_containers_limit_counts_where_it_is_less(machine: Path, limit: str | None, total: int) -> None:
    if limit is not None:
        machine.write_text(limit)
    assert device.host_memory_bytes() == total
    assert device.planner_for(Settings()).host_limit_bytes == int(total * 0.85)


def test_without_a_gpu_nothing_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = Settings()
    assert device.detect() == torch.device("cpu")
    assert device.planner_for(settings) == Planner(None, settings, None)


@pytest.mark.parametrize(
    ("gpus", "here", "size"),
    [(1, None, 1), (3, None, 3), ("all", None, 1), ("all", 2, 2), ("all", 64, 8), ("all", 0, 1), (2, 4, 2), (4, 2, 2)],
)
def test_as_many_processes_as_asked_for_and_no_more_than_gpus(
    gpus: int | Literal["all"], here: int | None, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert device.crew_size(Settings(gpus=gpus), here) == size
    assert ("GPUS=4, but 2 are here" in caplog.text) is (gpus == 4)
