"""SIGTERM to a test run, or to a benchmark, ends every process that it started, then the run itself.

A pytest plugin: pytest and xdist end at SIGTERM without a word to the workers, ffmpegs and servers of the tests that
are under way. Benchmarks that start workers call `end_children_at_sigterm`.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Only in the process that the signal is sent to: it ends xdist's workers with all the rest."""
    if not hasattr(config, "workerinput"):
        end_children_at_sigterm()


def end_children_at_sigterm() -> None:
    """Call it from the main thread."""
    signal.signal(signal.SIGTERM, _end_all)


def _end_all(_signal: int, _frame: FrameType | None) -> None:
    """Stop the descendants first, so that none starts another one while they are killed."""
    for order in (psutil.Process.suspend, psutil.Process.kill):
        for child in psutil.Process().children(recursive=True):
            try:
                order(child)
            except psutil.NoSuchProcess:
                continue
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)
