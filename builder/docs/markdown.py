"""What every generated page is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""

    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", "\\|") for cell in cells)
        return f"| {' | '.join(escaped)} |"

    return "\n".join(line(cells) for cells in (heads, ["---"] * len(heads), *rows))


def page(source: str, *parts: str) -> str:
    """A whole page; `source` names the files that it is written from."""
    note = f"<!-- Written by `make docs` from {source}: change the code, not this page. -->"
    return "\n\n".join(part.strip("\n") for part in (note, *parts)) + "\n"
