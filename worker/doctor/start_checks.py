"""The checks at the start of a worker: what makes every job fail refuses the start, the rest is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from worker.base.errors import SettingsError
from worker.doctor.checks import BESIDE_LOADING, before_loading
from worker.doctor.deployment import Deployment
from worker.doctor.report import Line
from worker.doctor.runner import Running, run_here

logger = logging.getLogger(__name__)

# How long the start waits for checks after its models are loaded; the storage needs a fraction of it.
WAIT_S = 2.0


class CannotStart(SettingsError):
    """No job could succeed here. `lines` are the checks that say so."""

    def __init__(self, lines: Sequence[Line]) -> None:
        super().__init__([f"{line.found}; {line.advice} (check: {line.name})" for line in lines])
        self.lines = tuple(lines)

    def __str__(self) -> str:
        return f"the worker cannot start: {'; '.join(self.problems)}"


@contextmanager
def watched(deployment: Deployment) -> Iterator[None]:
    """Checks before the block, which loads the models, and on the platform also beside it.

    Raises CannotStart, before or after the block. Off the platform only a refusal is reported.
    """
    on_platform = deployment.settings.on_platform
    _judge(run_here(before_loading(deployment.settings.preload), deployment), logged=on_platform)
    if not on_platform:
        yield
        return
    beside = Running(BESIDE_LOADING, deployment)
    yield
    # A check that is silent may only be slow: it is logged, and refuses nothing.
    _judge(beside.lines(at_most_s=WAIT_S), logged=True)


def _judge(lines: Iterable[Line], *, logged: bool) -> None:
    fatal = []
    for line in lines:
        if line.status == "FAIL" and line.stops_jobs:
            fatal.append(line)
        elif line.status != "OK" and logged:
            logger.warning("%s: %s; %s", line.name, line.found, line.advice)
    if fatal:
        raise CannotStart(fatal)
