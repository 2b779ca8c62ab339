"""Runs a command of the command line in this process, and leaves the process's logging as it was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.kits.logs import logging_as_it_was
from worker.cli.__main__ import main


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """What `python -m worker.cli ARGUMENTS` answers."""
    capsys.readouterr()
    with logging_as_it_was():
        try:
            status = main(arguments)
        except SystemExit as ended:  # argparse
            status = int(ended.code or 0)
    captured = capsys.readouterr()
    return Done(status, captured.out, captured.err)
