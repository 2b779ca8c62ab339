"""What every benchmark reports alike: the machine, medians of repeated runs, a Markdown table, a result file."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
# A dataclass of one run: what was run, and what was measured, in numbers.
Run = TypeVar("Run")


def machine(*packages: str) -> dict[str, Any]:
    """The machine that this process runs on, with the versions of `packages`."""
    facts = {"cores": os.cpu_count(), "architecture": platform.machine(), "python": platform.python_version()}
    return {**facts, **{package: version(package) for package in packages}}


def medians(runs: Iterable[Run], *by: str) -> list[Run]:
    """One run for each combination of the fields `by`, in order of appearance; all other fields are the median."""
    groups: dict[Hashable, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run, name) for name in by), []).append(run)
    return [type(group[0])(**_median(group, by)) for group in groups.values()]


def _median(group: Sequence[Any], by: Sequence[str]) -> dict[str, Any]:
    first = group[0]
    return {
        field.name: getattr(first, field.name)
        if field.name in by
        else statistics.median(getattr(run, field.name) for run in group)
        for field in fields(first)
    }


def median_of(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each key of `runs`, which all have the same keys."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A Markdown table: the first `words` columns are words, the others are figures, to the right."""
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def as_dicts(runs: Iterable[Any]) -> list[dict[str, Any]]:
    """Dataclasses as they are written into a result."""
    return [asdict(run) for run in runs]


def write(folder: Path | None, name: str, result: Mapping[str, Any], *packages: str) -> Path | None:
    """Write `result`, with date and machine, as `NAME-DATE.json` in `folder` and return it; None writes nothing."""
    if folder is None:
        return None
    date = datetime.now(UTC).date().isoformat()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-{date}.json"
    whole = {"benchmark": name, "date": date, "machine": machine(*packages), **result}
    target.write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return target
