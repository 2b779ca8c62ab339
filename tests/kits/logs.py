"""Logs that a test reads, and the process's logging as it was before."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


def entries(stream: io.StringIO) -> list[dict[str, Any]]:
    """The records of a log in the JSON layout."""
    return [json.loads(line) for line in stream.getvalue().split("\n") if line]
