"""The loading benchmark at the size of the demo model: every way reads, and the paced start runs both ways."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks import load, load_ways
from tests.kits.lora_kit import spec_of
from worker.weights.sources import demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("load") / "t2v"
    demo.build(spec_of("t2v"), folder)
    return folder


@pytest.mark.parametrize("way", [*load_ways.WAYS, *load_ways.CANDIDATES, *load_ways.CONVERTED])
def test_every_way_reads_an_expert(folder: Path, way: str) -> None:
    run = load_ways.measure(way, folder / "transformer")
    assert (run.way, run.seconds > 0) == (way, True)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_a_paced_start_tells_its_first_step(folder: Path, overlap: bool) -> None:
    moments = load.start(folder, 1e9, overlap=overlap)
    assert 0 < moments["first_step_s"] < moments["latents_s"]


def test_the_pace_reads_what_lies_there(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    buffer = bytearray(4)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert load.Pace(1e6)(descriptor, [memoryview(buffer)], 3) == 4
    finally:
        os.close(descriptor)
    assert bytes(buffer) == b"3456"
