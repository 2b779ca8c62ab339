"""What tests of the log share."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.kits.logs import logging_as_it_was
from worker.base import log


@pytest.fixture
def begin() -> Iterator[Callable[..., io.StringIO]]:
    """Configures the log to write to a stream that it returns."""

    def configure(**options: Any) -> io.StringIO:
        stream = io.StringIO()
        log.configure(stream=stream, **options)
        return stream

    with logging_as_it_was():
        yield configure
