"""What is wrong with a payload, and what was corrected in it, each with its dotted path."""

from __future__ import annotations

from collections.abc import Sequence

from worker.base.errors import Problem


def join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


class Problems:
    """Collects for the place `path` of a payload, "" for its top.

    `found` holds the problems of the whole payload, `warnings` those lines that the caller of this place's video reads.
    """

    def __init__(self, path: str = "", found: list[Problem] | None = None, warnings: Sequence[str] = ()) -> None:
        self.path = path
        self.found: list[Problem] = [] if found is None else found
        self.warnings = list(warnings)

    def at(self, path: str) -> Problems:
        """For another place: its problems are the payload's, its warnings begin with these and go their own way."""
        return Problems(path, self.found, self.warnings)

    def refuse(self, field: str, reason: str) -> None:
        self.found.append(Problem(join(self.path, field), reason))

    def lowered(self, field: str, given: int, settled: int, why: str) -> None:
        """Warn that `given` was corrected to `settled`, where it was."""
        if settled != given:
            self.warn(join(self.path, field), f"{given} lowered to {settled} ({why})")

    def warn(self, path: str, line: str) -> None:
        self.warnings.append(f"{path}: {line}")
