"""Runs a command of the command line in this process, and leaves the process's logging as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from worker.cli.__main__ import main


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@contextmanager
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, loggers = list(root.handlers), [root, *map(logging.getLogger, ("worker", "handler"))]
    levels = [each.level for each in loggers]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)


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
