"""What is wrong with a payload, and what was corrected in it, each with its dotted path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.base.errors import InputBlocked, InvalidRequest, Problem, WorkerError

MAX_NAMED_PROBLEMS = 100
# Comparing names takes time: this is what one payload may use. Nobody misspells the 1,001st name.
MAX_COMPARED_NAMES = 1_000


def join(path: str, field: str) -> str:
    return f"{path}.{field}" if path else field


@dataclass
class Found:
    """The problems of a whole payload, `kinds` their errors, and how many names may still be compared."""

    problems: list[Problem] = field(default_factory=list)
    paths: set[str | None] = field(default_factory=set)
    kinds: set[type[WorkerError]] = field(default_factory=set)
    names_to_compare: int = MAX_COMPARED_NAMES

    def add(self, problem: Problem, kind: type[WorkerError] = InvalidRequest) -> None:
        """Add `problem`, unless its field has one already: the first is what the others come from."""
        if problem.path not in self.paths:
            self.problems.append(problem)
            self.paths.add(problem.path)
            self.kinds.add(kind)

    def error(self) -> WorkerError:
        """One error for them all (at least one): InputBlocked where every one is of that kind, else InvalidRequest."""
        listed, more = self.problems[:MAX_NAMED_PROBLEMS], len(self.problems) - MAX_NAMED_PROBLEMS
        if more > 0:
            listed = [*listed, Problem(None, f"and {more} more problems")]
        return (InputBlocked if self.kinds == {InputBlocked} else InvalidRequest).of(listed)


class Problems:
    """Collects for the place `path` of a payload, "" for its top.

    `found` holds the problems of the whole payload, `warnings` those lines that the caller of this place's video reads.
    """

    def __init__(self, path: str = "", found: Found | None = None, warnings: Sequence[str] = ()) -> None:
        self.path = path
        self.found = Found() if found is None else found
        self.warnings = list(warnings)

    def at(self, path: str) -> Problems:
        """For another place: its problems are the payload's, its warnings begin with these and go their own way."""
        return Problems(path, self.found, self.warnings)

    def refuse(self, field: str, reason: str) -> None:
        self.found.add(Problem(join(self.path, field), reason))

    def refuse_all(self, reason: str) -> None:
        """Refuse this place itself."""
        self.found.add(Problem(self.path or "input", reason))

    def none_in(self, *fields: str) -> bool:
        """Whether these fields can be trusted: what is said of one that was refused may be wrong of what was meant."""
        return not any(join(self.path, field) in self.found.paths for field in fields)

    def lowered(self, field: str, given: int, settled: int, why: str) -> None:
        """Warn that `given` was corrected to `settled`, where it was."""
        if settled != given:
            self.warn(field, f"{given} lowered to {settled} ({why})")

    def warn(self, field: str, line: str) -> None:
        """Add a line to the warnings; "" for `field` means this place itself."""
        self.warnings.append(f"{join(self.path, field) if field else self.path or 'input'}: {line}")
