"""What all benchmarks share: medians, tables and the file of a result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks import reporting


@dataclass(frozen=True)
class Run:
    way: str
    frames: int
    seconds: float


def test_medians_are_of_what_was_measured_and_keep_what_was_run() -> None:
    runs = [Run("b", 5, 3.0), Run("a", 5, 1.0), Run("b", 5, 9.0), Run("b", 9, 7.0), Run("b", 5, 4.0)]
    assert reporting.medians(runs, "way", "frames") == [Run("b", 5, 4.0), Run("a", 5, 1.0), Run("b", 9, 7.0)]
    assert reporting.median_of([{"s": 1.0}, {"s": 5.0}, {"s": 2.0}]) == {"s": 2.0}


def test_figures_are_to_the_right_of_words() -> None:
    assert reporting.table(("way", "s"), [("a", "1.0")]) == "| way | s |\n| --- | ---: |\n| a | 1.0 |"


def test_a_result_is_written_with_its_machine_and_date(tmp_path: Path) -> None:
    assert reporting.write(None, "encode", {}) is None
    written = reporting.write(tmp_path / "new", "encode", {"runs": reporting.as_dicts([Run("a", 5, 1.0)])}, "numpy")
    assert written is not None
    found = json.loads(written.read_text(encoding="utf-8"))
    assert written.name == f"encode-{found['date']}.json"
    assert found["runs"] == [{"way": "a", "frames": 5, "seconds": 1.0}]
    assert set(found["machine"]) == {"cores", "architecture", "python", "numpy"}
