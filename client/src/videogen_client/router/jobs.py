"""A job and its attempts, as the store keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row

from . import statements
from .request import VideoRequest

# The job goes on while it is open. It ends as unknown where nobody can say whether a service makes its video.
JobStatus = Literal["open", "completed", "failed", "cancelled", "unknown"]
# Intended: written before the submission. Refused: the service has not taken it.
AttemptState = Literal["intended", "submitted", "completed", "failed", "refused", "cancelled", "unknown"]
MICROUSD = 1_000_000


@dataclass(frozen=True)
class Attempt:
    """`id` is the idempotency key that the service gets. `handle` is the service's id, once it is known."""

    id: str
    number: int
    backend: str
    state: AttemptState
    handle: str | None
    reserved_usd: float
    cost_usd: float | None
    begun_at: float
    ended_at: float | None = None
    why: str | None = None


@dataclass(frozen=True)
class Job:
    id: str
    key: str
    request: VideoRequest
    day: str
    status: JobStatus
    created_at: float
    deadline_at: float
    ended_at: float | None
    cancel_requested: bool
    route: tuple[dict[str, Any], ...]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    attempts: tuple[Attempt, ...]

    @property
    def current(self) -> Attempt | None:
        """The attempt that has not ended."""
        return next((each for each in self.attempts if each.state in ("intended", "submitted")), None)

    @property
    def spent_usd(self) -> float:
        return sum(each.cost_usd or 0.0 for each in self.attempts)


@dataclass(frozen=True)
class End:
    """How a job ended."""

    status: JobStatus
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None


def job_of(connection: Connection, row: Row[Any]) -> Job:
    attempts = connection.execute(statements.ATTEMPTS_OF_JOB, {"of_job": row.id})
    return Job(
        row.id,
        row.key,
        VideoRequest.model_validate_json(row.request),
        row.day,
        row.status,
        row.created_at,
        row.deadline_at,
        row.ended_at,
        row.cancel_requested,
        tuple(json.loads(row.route)),
        None if row.result is None else json.loads(row.result),
        None if row.error is None else json.loads(row.error),
        tuple(_attempt_of(each) for each in attempts),
    )


def _attempt_of(row: Row[Any]) -> Attempt:
    cost_usd = None if row.cost_microusd is None else row.cost_microusd / MICROUSD
    reserved_usd = row.reserved_microusd / MICROUSD
    return Attempt(
        row.id,
        row.number,
        row.backend,
        row.state,
        row.handle,
        reserved_usd,
        cost_usd,
        row.begun_at,
        row.ended_at,
        row.why,
    )


def microusd(usd: float) -> int:
    return round(usd * MICROUSD)
