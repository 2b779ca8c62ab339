"""Runs checks side by side, each under its time limit: one that hangs or breaks becomes a line like the others."""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from worker.doctor.checks import Check
from worker.doctor.deployment import Deployment
from worker.doctor.report import Finding, Line, fail

logger = logging.getLogger(__name__)

_HIDDEN = "[hidden]"
_HIDDEN_FROM = 4  # characters; hiding shorter ones would hide words


class Running:
    """Checks that have begun, each in a thread of its own that a hanging one may keep for ever."""

    def __init__(self, checks: Sequence[Check], deployment: Deployment) -> None:
        self._deployment = deployment
        self._began = time.monotonic()
        self._checks = [_Thread(check, deployment) for check in checks]
        for thread in self._checks:
            thread.start()

    def lines(self, *, at_most_s: float = math.inf) -> Iterator[Line]:
        """The lines in the order of the checks, each as soon as it and those before it are known.

        `at_most_s` from now, what has not returned counts as silent, whatever its own limit.
        """
        end = time.monotonic() + at_most_s
        for thread in self._checks:
            limit = min(self._began + thread.check.limit_s, end)
            thread.join(None if limit == math.inf else max(0.0, limit - time.monotonic()))
            yield _without_secrets(thread.line(), self._deployment)


def run_here(checks: Iterable[Check], deployment: Deployment) -> list[Line]:
    """Runs checks one after another in this thread, for those that take milliseconds."""
    return [_without_secrets(_line(check.name, _finding(check, deployment), 0.0), deployment) for check in checks]


class _Thread(threading.Thread):
    def __init__(self, check: Check, deployment: Deployment) -> None:
        super().__init__(name=f"check {check.name}", daemon=True)
        self.check = check
        self._deployment = deployment
        self._began = time.monotonic()
        self._answer: tuple[Finding, float] | None = None

    def run(self) -> None:
        self._answer = (_finding(self.check, self._deployment), time.monotonic() - self._began)

    def line(self) -> Line:
        if self._answer is not None:
            return _line(self.check.name, *self._answer)
        seconds = time.monotonic() - self._began
        found = f"did not answer in {seconds:.0f} s"
        return Line(self.check.name, self.check.silent, found, self.check.advice, seconds, silent=True)


def _finding(check: Check, deployment: Deployment) -> Finding:
    try:
        return check.run(deployment)
    except Exception as failure:  # the text of an unforeseen failure may hold anything: it goes to the log alone
        logger.exception("the check %s failed", check.name)
        return fail(
            f"the check itself failed ({type(failure).__name__})", "the log has the traceback: report it as a defect"
        )


def _without_secrets(line: Line, deployment: Deployment) -> Line:
    """Lines are sent to the platform too, without the log's redaction."""
    found, advice = line.found, line.advice
    for secret in deployment.settings.secret_values():
        if len(secret) >= _HIDDEN_FROM:
            found, advice = found.replace(secret, _HIDDEN), advice.replace(secret, _HIDDEN)
    return dataclasses.replace(line, found=found, advice=advice)


def _line(name: str, finding: Finding, seconds: float) -> Line:
    return Line(name, finding.status, finding.found, finding.advice, seconds, finding.stops_jobs)
