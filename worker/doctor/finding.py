"""What a check found, and the line that is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["OK", "WARN", "FAIL"]
_WORST_FIRST: tuple[Status, ...] = ("FAIL", "WARN", "OK")


@dataclass(frozen=True, slots=True)
class Finding:
    """`found` is what was seen, `advice` what to do about it, empty where nothing is to be done.

    `stops_jobs`: while this is so, no job can succeed; the platform's start is refused for it. Neither text holds a
    secret or a signed URL.
    """

    status: Status
    found: str
    advice: str = ""
    stops_jobs: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the report: a finding under its check's name. `silent`: the check never answered."""

    name: str
    status: Status
    found: str
    advice: str
    seconds: float
    stops_jobs: bool = False
    silent: bool = False


def ok(found: str) -> Finding:
    return Finding("OK", found)


def warn(found: str, advice: str) -> Finding:
    return Finding("WARN", found, advice)


def fail(found: str, advice: str, *, stops_jobs: bool = False) -> Finding:
    return Finding("FAIL", found, advice, stops_jobs)


def together(findings: Sequence[Finding]) -> Finding:
    """One finding for several (at least one), as bad as the worst of them."""
    status = next(status for status in _WORST_FIRST if any(each.status == status for each in findings))
    return Finding(
        status,
        "; ".join(each.found for each in findings),
        "; ".join(each.advice for each in findings if each.advice),
        any(each.stops_jobs for each in findings),
    )


def from_message(message: str) -> tuple[str, str]:
    """What a typed error says, parted into what happened and what to do: they are written `what: what to do`."""
    found, colon, advice = message.rpartition(": ")
    return (found, advice) if colon else (message, "")
