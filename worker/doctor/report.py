"""The report: aligned lines for people, one JSON object for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence

from worker.doctor.finding import Line, Status

_COLOURS: dict[Status, str] = {"OK": "\x1b[32m", "WARN": "\x1b[33m", "FAIL": "\x1b[31m"}
_PLAIN = "\x1b[0m"
_STATUS_WIDTH = 6
_LEAST_TEXT = 40


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


def printable(found: str) -> str:
    """Names of files may hold anything: control characters would act on the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in found)
