"""The notes of a release, from the changelog: `python -m builder.release_notes VERSION` (with or without a `v`)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"
_HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\].*$", re.MULTILINE)
_LINKS = re.compile(r"^\[[^\]]+\]: \S+$", re.MULTILINE)


def notes(changelog: str, version: str) -> str:
    """What stands below the heading of a version, up to the next one.

    Raises ValueError where the changelog has no such version, or nothing below it.
    """
    headings = list(_HEADING.finditer(changelog))
    for number, heading in enumerate(headings):
        if heading["version"] == version:
            end = headings[number + 1].start() if number + 1 < len(headings) else len(changelog)
            text = _LINKS.sub("", changelog[heading.end() : end]).strip()
            if not text:
                raise ValueError(f"CHANGELOG.md says nothing of version {version}")
            return text + "\n"
    there = ", ".join(heading["version"] for heading in headings)
    raise ValueError(f"CHANGELOG.md has no version {version}, only {there}: rename Unreleased before the tag")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m builder.release_notes", description="The notes of a release.")
    parser.add_argument("version", help="such as 0.1.0, or the tag v0.1.0")
    version = parser.parse_args(arguments).version.removeprefix("v")
    try:
        sys.stdout.write(notes(CHANGELOG.read_text(encoding="utf-8"), version))
    except ValueError as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
