"""What the router must not forget: jobs, attempts, budgets, breakers. SQLite by default, Postgres by its URL.

A job belongs to one router process at a time: `owner`, until `lease_until`. Every change of a job checks that it is
still the caller's, in the transaction of the change. An attempt is written before its submission, with its reservation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa
import stamina
from sqlalchemy import Connection

from . import statements
from .breaker import BreakerState
from .errors import JobUnknown, KeyReused
from .jobs import Attempt, AttemptState, End, Job, job_of, microusd
from .leases import LeaseLost, own, prolong
from .ledger import Ledger, breakers, insert_new
from .policy import Policy
from .request import VideoRequest
from .tables import ATTEMPTS, JOBS, METADATA

_BUSY_S = 30
_T = TypeVar("_T")


class Store:
    """Blocking: the router calls it in threads. `clock` gives seconds of the epoch, which all processes share."""

    def __init__(self, policy: Policy, clock: Callable[[], float]) -> None:
        self._ledger = Ledger(policy)
        self._clock = clock
        self.is_sqlite = policy.store.startswith("sqlite")
        options: dict[str, Any] = {"connect_args": {"timeout": _BUSY_S}} if self.is_sqlite else {"pool_pre_ping": True}
        self._engine = sa.create_engine(policy.store, **options)
        if self.is_sqlite:
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        with self._transaction() as connection:
            if not self.is_sqlite:  # two processes that start at once would both make the tables
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(728)"))
            METADATA.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.begin() as connection:
            yield connection

    def _run(self, change: Callable[[Connection], _T]) -> _T:
        """`change` in one transaction, again where the database asks for it: a deadlock, a lock that was not got."""
        for attempt in stamina.retry_context(on=sa.exc.OperationalError, attempts=6, wait_initial=0.02, wait_max=0.5):
            with attempt, self._transaction() as connection:
                return change(connection)
        raise AssertionError

    def create(
        self,
        job_id: str,
        key: str,
        request: VideoRequest,
        deadline_at: float,
        owner: str,
        lease_s: float,
        admit: Callable[[Mapping[str, BreakerState], float | None], None] = lambda _breakers, _left_usd: None,
    ) -> Job:
        """The job of `key`, which is new where its id is `job_id`. Raises KeyReused for a key of another request.

        `admit` gets what `standing` returns, for a job that would be new, and may raise.
        """
        now = self._clock()
        fields = {
            "id": job_id,
            "tenant": request.tenant,
            "key": key,
            "request": request.model_dump_json(),
            "day": _day(now),
            "status": "open",
            "created_at": now,
            "deadline_at": deadline_at,
            "owner": owner,
            "lease_until": now + lease_s,
        }

        def change(connection: Connection) -> Job:
            of_key = {"of_tenant": request.tenant, "of_key": key}
            row = connection.execute(statements.JOB_OF_KEY, of_key).one_or_none()
            if row is None:
                admit(*self._standing(connection, request.tenant))
                insert_new(connection, JOBS, fields)
                row = connection.execute(statements.JOB_OF_KEY, of_key).one()
            job = job_of(connection, row)
            if job.request != request:
                raise KeyReused(f"the key {key} belongs to another request", job_id=job.id)
            return job

        return self._run(change)

    def get(self, job_id: str) -> Job:
        """Raises JobUnknown."""

        def read(connection: Connection) -> Job:
            row = connection.execute(statements.JOB, {"of_job": job_id}).one_or_none()
            if row is None:
                raise JobUnknown(f"there is no job {job_id}", job_id=job_id)
            return job_of(connection, row)

        return self._run(read)

    def jobs(self, *, limit: int) -> list[Job]:
        """The latest ones."""
        query = sa.select(JOBS).order_by(JOBS.c.created_at.desc()).limit(limit)
        return self._run(lambda connection: [job_of(connection, row) for row in connection.execute(query).all()])

    def claim(self, owner: str, lease_s: float, limit: int) -> list[str]:
        """Jobs that no process drives, which are now the caller's."""

        def change(connection: Connection) -> list[str]:
            now = self._clock()
            free = (JOBS.c.status == "open") & (JOBS.c.lease_until < now)
            query = sa.select(JOBS.c.id).where(free).order_by(JOBS.c.created_at).limit(limit)
            found = list(connection.scalars(query.with_for_update(skip_locked=True)))
            if found:
                taken = sa.update(JOBS).where(JOBS.c.id.in_(found))
                connection.execute(taken.values(owner=owner, lease_until=now + lease_s))
            return found

        return self._run(change)

    def renew(self, owner: str, driven: Sequence[str], lease_s: float) -> set[str]:
        """Prolongs the leases of the jobs that the caller drives, and still owns; returns those to be cancelled.

        A job that it owns and does not drive is left to run out, so that it is claimed again.
        """

        def change(connection: Connection) -> set[str]:
            mine = (JOBS.c.owner == owner) & (JOBS.c.status == "open") & JOBS.c.id.in_(driven)
            connection.execute(sa.update(JOBS).where(mine).values(lease_until=self._clock() + lease_s))
            return set(connection.scalars(sa.select(JOBS.c.id).where(mine & JOBS.c.cancel_requested)))

        return self._run(change)

    def release(self, owner: str) -> None:
        """The jobs of the caller, which no longer drives them, are free."""
        mine = (JOBS.c.owner == owner) & (JOBS.c.status == "open")
        self._run(lambda connection: connection.execute(sa.update(JOBS).where(mine).values(lease_until=0.0)))

    def request_cancel(self, job_id: str) -> None:
        query = sa.update(JOBS).where((JOBS.c.id == job_id) & (JOBS.c.status == "open")).values(cancel_requested=True)
        self._run(lambda connection: connection.execute(query))

    def standing(self, tenant: str) -> tuple[dict[str, BreakerState], float | None]:
        """The breakers of the backends that have had an outcome, and the USD that a tenant has left today.

        None where there is no limit.
        """
        return self._run(lambda connection: self._standing(connection, tenant))

    def begin(
        self,
        job: Job,
        owner: str,
        lease_s: float,
        choose: Callable[[Mapping[str, BreakerState]], Sequence[tuple[str, float]]],
        note: Callable[[str, str], None],
    ) -> Attempt | None:
        """An attempt at the first candidate that its breaker and the tenant's budget let through, with its reservation.

        `choose` gets the breakers, and returns the candidates: pairs of a backend and its highest price in USD. `note`
        gets the reason why one of them is not asked. The lease of the job is renewed where there is a candidate.
        """

        def change(connection: Connection) -> Attempt | None:
            states = breakers(connection)
            candidates = choose(states)
            if not candidates:
                return None
            prolong(connection, job.id, owner, self._clock() + lease_s)
            number = len(job.attempts) + 1
            attempt_id, now = f"{job.id}-{number}", self._clock()
            for backend, usd in candidates:
                if not self._ledger.reserve(connection, job, microusd(usd)):
                    note(backend, f"up to {usd:.4f} USD are more than what is left of the tenant's budget for the day")
                    continue
                state = states.get(backend, BreakerState())
                why_not = self._ledger.pass_breaker(connection, state, backend, attempt_id, now)
                if why_not is not None:
                    self._ledger.reserve(connection, job, -microusd(usd))
                    note(backend, why_not)
                    continue
                fields = {
                    "id": attempt_id,
                    "job_id": job.id,
                    "number": number,
                    "backend": backend,
                    "state": "intended",
                    "reserved_microusd": microusd(usd),
                    "begun_at": now,
                }
                connection.execute(statements.BEGIN, fields)
                return Attempt(attempt_id, number, backend, "intended", None, usd, None, now)
            return None

        return self._run(change)

    def hold(self, job_id: str, owner: str, attempt_id: str, lease_s: float) -> None:
        """Renews the lease of a job before a submission. Raises LeaseLost where the attempt is not the caller's."""

        def change(connection: Connection) -> None:
            prolong(connection, job_id, owner, self._clock() + lease_s)
            if connection.execute(statements.GOING_ON, {"of_attempt": attempt_id}).one_or_none() is None:
                raise LeaseLost(job_id)

        self._run(change)

    def submitted(self, job_id: str, owner: str, attempt_id: str, handle: str) -> None:
        """Raises LeaseLost; the handle is written all the same, for the process that has the job now."""

        def change(connection: Connection) -> None:
            own(connection, job_id, owner)
            connection.execute(statements.SUBMITTED, {"of_attempt": attempt_id, "its_handle": handle})

        try:
            self._run(change)
        except LeaseLost:
            self.found(attempt_id, handle)
            raise

    def found(self, attempt_id: str, handle: str) -> None:
        """The handle of an attempt whose answer was lost. One that has ended keeps its state."""
        lost = (ATTEMPTS.c.id == attempt_id) & (ATTEMPTS.c.handle.is_(None))
        state = sa.case((ATTEMPTS.c.ended_at.is_(None), "submitted"), else_=ATTEMPTS.c.state)
        query = sa.update(ATTEMPTS).where(lost).values(state=state, handle=handle)
        self._run(lambda connection: connection.execute(query))

    def settle(
        self,
        job: Job,
        owner: str,
        attempt: Attempt,
        state: AttemptState,
        *,
        cost_usd: float,
        is_success: bool | None,
        why: str | None = None,
        route: Sequence[Mapping[str, Any]] = (),
        end: End | None = None,
    ) -> None:
        """Ends an attempt: the reservation becomes its cost. With `end` the job ends too, in the same transaction.

        `is_success` is what the breaker counts, None where the backend is not to blame.
        """

        def change(connection: Connection) -> None:
            own(connection, job.id, owner)
            now, cost = self._clock(), microusd(cost_usd)
            fields = {"state": state, "cost_microusd": cost, "is_success": is_success, "ended_at": now, "why": why}
            going_on = (ATTEMPTS.c.id == attempt.id) & (ATTEMPTS.c.ended_at.is_(None))
            if connection.execute(sa.update(ATTEMPTS).where(going_on).values(**fields)).rowcount == 0:
                raise LeaseLost(job.id)  # another process has had the job in the meantime
            self._ledger.reserve(connection, job, -microusd(attempt.reserved_usd), spent=cost)
            self._ledger.count(connection, attempt, is_success, now)
            self._write_end(connection, job.id, route, end)

        self._run(change)

    def write(self, job: Job, owner: str, route: Sequence[Mapping[str, Any]], end: End | None = None) -> None:
        """The route so far, and the end of a job between two attempts."""

        def change(connection: Connection) -> None:
            own(connection, job.id, owner)
            self._write_end(connection, job.id, route, end)

        self._run(change)

    def adopt(self, job_id: str, result: Mapping[str, Any]) -> None:
        """The video of a job that ended as unknown. Its cost was counted then."""
        unknown = (JOBS.c.id == job_id) & (JOBS.c.status == "unknown")
        query = sa.update(JOBS).where(unknown).values(status="completed", result=_dump(result), error=None)
        self._run(lambda connection: connection.execute(query))

    def _standing(self, connection: Connection, tenant: str) -> tuple[dict[str, BreakerState], float | None]:
        return breakers(connection), self._ledger.budget_left_usd(connection, tenant, _day(self._clock()))

    def _write_end(
        self, connection: Connection, job_id: str, route: Sequence[Mapping[str, Any]], end: End | None
    ) -> None:
        fields: dict[str, Any] = {"route": json.dumps(list(route))}
        if end is not None:
            fields |= {"status": end.status, "ended_at": self._clock()}
            fields |= {"result": _dump(end.result), "error": _dump(end.error)}
        connection.execute(sa.update(JOBS).where(JOBS.c.id == job_id).values(**fields))


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy begins them
    connection.execute("PRAGMA journal_mode=WAL")


def _dump(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value)


def _day(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).date().isoformat()
