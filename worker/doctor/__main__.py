"""`python -m worker.doctor [--json] [--verify-weights]`: exit status 0 when nothing failed, 1 otherwise."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from worker.base import log
from worker.doctor import report
from worker.doctor.checks import CHECKS, VERIFY, Check
from worker.doctor.deployment import Deployment, readable_settings
from worker.doctor.report import Line
from worker.doctor.runner import Running

_WIDEST = 120


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.doctor", description="Check what a deployment needs.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--verify-weights", action="store_true", help="only read every byte of the weights and compare their hashes"
    )
    options = parser.parse_args(arguments)
    return run(as_json=options.json, verify_weights=options.verify_weights)


def run(*, as_json: bool = False, verify_weights: bool = False) -> int:
    """Check, and print the report. Returns the exit status."""
    settings, problems = readable_settings()
    # Standard output is the report's; what libraries and the encoder say goes to standard error.
    log.configure(level="ERROR", layout=settings.log_format, secrets=settings.secret_values())
    began = time.monotonic()
    lines = _lines(VERIFY if verify_weights else CHECKS, Deployment.tried(settings, problems), quiet=as_json)
    seconds = time.monotonic() - began
    sys.stdout.write((report.as_json if as_json else report.summary)(lines, seconds) + "\n")
    return 0 if report.passed(lines) else 1


def end(status: int) -> NoReturn:
    """End the process at once: a check that hangs may have threads for which Python would wait at its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _lines(checks: Sequence[Check], deployment: Deployment, *, quiet: bool) -> list[Line]:
    name_width = max(len(check.name) for check in checks)
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    lines = []
    for line in Running(checks, deployment).lines():
        lines.append(line)
        if not quiet:
            shown = report.text(line, name_width=name_width, width=width, colour=sys.stdout.isatty())
            sys.stdout.write(shown + "\n")
            sys.stdout.flush()
    return lines


if __name__ == "__main__":
    end(main())
