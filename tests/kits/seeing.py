"""What an operator sees of a worker: its metrics over a real port, the lines of its log, and timings that add up."""

from __future__ import annotations

import io
import json
import logging
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kits.logs import logging_as_it_was
from worker.base import log, metrics
from worker.base.metrics import Server

MADE_OF = ("inputs", "load", "text", "generate", "encode")
Sample = dict[tuple[str, tuple[tuple[str, str], ...]], float]
Lines = list[dict[str, Any]]


@pytest.fixture
def server() -> Iterator[Server]:
    server = metrics.serve(0, address="127.0.0.1")
    assert server is not None
    yield server
    server.close()


def scrape(port: int) -> Sample:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return read(answer.read().decode())


def read(text: str) -> Sample:
    def labels(of: dict[str, str]) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, str(float(text)) if name == "le" else text) for name, text in of.items()))

    return {
        (sample.name, labels(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(sample: Sample, name: str, **labels: str) -> float | None:
    return sample.get((name, tuple(sorted(labels.items()))))


@contextmanager
def logged(**options: Any) -> Iterator[io.StringIO]:
    """What the worker logs, a line of JSON each. `options` are those of `log.configure`."""
    stream, servers_of_tests = io.StringIO(), logging.getLogger("werkzeug")
    servers_of_tests.disabled = True
    try:
        with logging_as_it_was():
            log.configure(layout="json", stream=stream, **options)
            yield stream
    finally:
        servers_of_tests.disabled = False


def lines(text: str) -> Lines:
    return [json.loads(line) for line in text.splitlines()]


def of(found: Lines, **fields: object) -> Lines:
    return [line for line in found if all(line.get(name) == wanted for name, wanted in fields.items())]


def adds_up(timings: Mapping[str, float]) -> bool:
    """The requirement: within 1%, or 5 ms where all is tiny."""
    stages = sum(seconds for stage, seconds in timings.items() if stage != "total")
    return abs(stages - timings["total"]) <= max(0.01 * timings["total"], 0.005)
