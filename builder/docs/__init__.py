"""The reference pages and the generated parts of README.md, written from the code: `python -m builder.docs`.

docs/configuration.md         from worker/base/settings.py
docs/request.md               from the payload's JSON Schema (worker/request/schema.py), presets and camera motions
docs/errors.md                from worker/base/errors.py
README.md                     the parts between `<!-- NAME: written by make docs -->` and `<!-- end of NAME -->`
docs/monitoring-and-cost.md   the same: the table of costs, from worker/request/plan/duration.py
docs/training.md              the same: the fields of a training, from worker/request/training_payload.py, and what it
                              takes on a GPU, from worker/training/plan.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from builder.docs import configuration, costs, errors, readme, request, training

ROOT = Path(__file__).resolve().parents[2]
PAGES: Mapping[str, Callable[[], str]] = {
    "docs/configuration.md": configuration.render,
    "docs/request.md": request.render,
    "docs/errors.md": errors.render,
}
PARTS: Mapping[str, Callable[[], str]] = {
    "served": readme.served,
    "gpus": readme.gpus,
    "rooms": readme.rooms,
}
# Pages that are written by hand but for these parts of them.
PARTS_OF: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "README.md": PARTS,
    "docs/monitoring-and-cost.md": {"costs": costs.render},
    "docs/training.md": {"train": request.training_fields, "plans": training.plans},
}


def with_parts(text: str, file: str = "README.md") -> str:
    """`text` with each generated part of `file` renewed. Raises ValueError where its markers are not there once."""
    for name, render in PARTS_OF[file].items():
        begin, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
        pieces = re.split(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.DOTALL)
        if len(pieces) != 2:
            raise ValueError(f"{file} must hold the markers of the part {name!r} once")
        text = f"{pieces[0]}{begin}\n\n{render()}\n\n{end}{pieces[1]}"
    return text


def expected() -> dict[str, str]:
    """The text that each file should have, by its path from the root of the repository."""
    by_hand = {file: with_parts((ROOT / file).read_text(encoding="utf-8"), file) for file in PARTS_OF}
    return {**{name: render() for name, render in PAGES.items()}, **by_hand}


def stale(texts: Mapping[str, str]) -> list[str]:
    """The files of `texts` that are missing or have another text."""
    return [
        name
        for name, text in texts.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text(encoding="utf-8") != text
    ]
