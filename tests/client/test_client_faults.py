"""A sample of `python -m benchmarks.client`: random faults on every request, and endpoints that forget their jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import client as benchmark
from tests.kits.slow import slow


@pytest.mark.parametrize("runs", [10, *slow(60)])
def test_nothing_is_paid_twice_and_nothing_lost(runs: int, tmp_path: Path) -> None:
    figures = benchmark.measure(runs, runs, tmp_path)
    assert figures.is_clean, figures
    assert figures.faults > figures.runs


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nor_by_the_real_handler(tmp_path: Path) -> None:
    with benchmark.handler(tmp_path / "worker") as worker:
        figures = benchmark.measure(3, 6, tmp_path, worker)
    assert figures.is_clean, figures
