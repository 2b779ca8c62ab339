"""The plan beside what was measured on GPUs (benchmarks/results/h200-*): what is planned is never too little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worker.request.plan.gpus import CONTEXT_BYTES, FRAGMENTATION

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
# Since segments of the allocator grow and locked memory is in slabs.
MEASURED = ("h200-2026-11-26-after", "h200-2026-11-27", "h200-2026-11-27-second")
GB = 1e9
# In use 0.5 GB more than planned: before one kernel quantised what is multiplied in fp8.
OVER = ("h200-2026-11-26-after: fp8", "h200-2026-11-27: fp8")


def _videos() -> list[tuple[str, float, float, float]]:
    """(run and stage, planned peak, peak, in use on the card), GB; of `turbo` the plan is that of its size."""
    found: list[tuple[str, float, float, float]] = []
    for run in MEASURED:
        lines = [json.loads(line) for line in (RESULTS / run / "results.jsonl").read_text().splitlines()]
        planned = {line["what"][6:]: line["estimate_GB"] for line in lines if line["what"].startswith("plan, ")}
        for line in lines:
            name, what, value = f"{run}: {line['stage']}", line["what"], line["value"]
            if what == "peak, GB":  # of an engine of its own
                plan_gb = line.get("plan_GB") or next(
                    each["estimate_GB"] for each in lines if (each["stage"], each["what"]) == (line["stage"], "plan")
                )
                found.append((name, plan_gb, value, line["in_use_GB"]))
            elif what == "memory":
                size = "720p" if line["stage"].endswith("720") else "480p"
                found.append((name, planned[size], value["peak_GB"], value["in_use_GB"]))
            elif what.startswith("whole request"):
                size = "720p" if line["stage"].endswith("720") else "480p"
                found.append((name, planned[size], line["peak_GB"], line["in_use_GB"]))
    return found


VIDEOS = _videos()


def test_there_are_figures_of_every_kind_of_plan_that_was_measured() -> None:
    assert {name.rsplit(": ", 1)[1] for name, *_ in VIDEOS} >= {"job480", "job720", "turbo720", "fp8", "swap48"}


@pytest.mark.parametrize(("name", "plan_gb", "peak_gb", "in_use_gb"), VIDEOS, ids=[name for name, *_ in VIDEOS])
def test_a_peak_is_below_its_plan_and_the_card_has_room(
    name: str, plan_gb: float, peak_gb: float, in_use_gb: float
) -> None:
    assert 0.93 * plan_gb < peak_gb <= plan_gb
    if name not in OVER:
        assert in_use_gb <= (plan_gb + CONTEXT_BYTES / GB) / (1 - FRAGMENTATION)


def test_host_memory_of_a_swap_plan_is_what_was_planned() -> None:
    lines = [
        json.loads(line)
        for line in (RESULTS / "h200-2026-11-27-second" / "results.jsonl").read_text().splitlines()
        if '"swap48"' in line
    ]
    (planned,) = (line["host_GB"] for line in lines if line["what"] == "plan")
    (taken,) = (line["host_taken_GB"] for line in lines if line["what"] == "peak, GB")
    assert 1.0 <= taken / planned <= 1.03
