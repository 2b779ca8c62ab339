"""What a check found, and how it is shown: aligned lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from worker.base.text import printable

Status = Literal["OK", "WARN", "FAIL"]
_WORST_FIRST: tuple[Status, ...] = ("FAIL", "WARN", "OK")
_COLOURS: dict[Status, str] = {"OK": "\x1b[32m", "WARN": "\x1b[33m", "FAIL": "\x1b[31m"}
_PLAIN = "\x1b[0m"
_STATUS_WIDTH = 6
_LEAST_TEXT = 40


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
    """One line of the report: a finding under its check's name. `silent`: the check did not return in time."""

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


def text(line: Line, *, name_width: int, width: int, colour: bool = False) -> str:
    """One line and, indented below it, its advice; wrapped at `width` columns."""
    indent = " " * (_STATUS_WIDTH + name_width + 2)
    room = max(width - len(indent), _LEAST_TEXT)
    body = textwrap.wrap(printable(line.found), room, break_on_hyphens=False, break_long_words=False)
    if line.advice:
        body += textwrap.wrap(
            f"-> {printable(line.advice)}",
            room,
            subsequent_indent="   ",
            break_on_hyphens=False,
            break_long_words=False,
        )
    status = f"{line.status:<{_STATUS_WIDTH}}"
    if colour:
        status = f"{_COLOURS[line.status]}{status}{_PLAIN}"
    return f"{status}{line.name:<{name_width}}  " + f"\n{indent}".join(body)


def summary(lines: Sequence[Line], seconds: float) -> str:
    counts = ", ".join(f"{sum(line.status == status for line in lines)} {status}" for status in ("OK", "WARN", "FAIL"))
    return f"{len(lines)} checks in {seconds:.1f} s: {counts}"


def as_json(lines: Sequence[Line], seconds: float) -> str:
    """`ok` is what the exit status says: no check failed."""
    checks = [
        {
            "name": line.name,
            "status": line.status,
            "found": printable(line.found),
            "advice": printable(line.advice),
            "seconds": round(line.seconds, 3),
        }
        for line in lines
    ]
    return json.dumps({"ok": passed(lines), "seconds": round(seconds, 3), "checks": checks}, ensure_ascii=False)


def passed(lines: Sequence[Line]) -> bool:
    return not any(line.status == "FAIL" for line in lines)
