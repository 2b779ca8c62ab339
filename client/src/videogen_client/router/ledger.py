"""What attempts cost and how they ended: the budgets of tenants and the breakers of backends.

All within a transaction of the store. Changes are conditional updates: the database decides who was first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, Row

from . import statements
from .breaker import BreakerState
from .jobs import MICROUSD, Attempt, Job, microusd
from .policy import Policy
from .tables import ATTEMPTS, BREAKERS, BUDGETS


class Ledger:
    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reserve(self, connection: Connection, job: Job, reserved: int, spent: int = 0) -> bool:
        """False where it would be more than the budget. What is taken back or spent is always written."""
        tenant, day = job.request.tenant, job.day
        added = {"of_tenant": tenant, "of_day": day, "reserved": reserved, "spent": spent}
        limit = self._policy.budget_usd(tenant)
        statement = statements.RESERVE
        if reserved > 0 and limit is not None:
            statement, added["limit"] = statements.RESERVE_WITHIN, microusd(limit)
        if connection.execute(statement, added).rowcount == 1:
            return True
        insert_new(connection, BUDGETS, {"tenant": tenant, "day": day})  # the first one of the day
        return connection.execute(statement, added).rowcount == 1

    def pass_breaker(
        self, connection: Connection, state: BreakerState, backend: str, attempt_id: str, now: float
    ) -> str | None:
        """Why not; an open breaker whose time has come makes the attempt its probe, the first one alone."""
        why_not = state.why_not(self._policy.breaker, now)
        if why_not is not None or state.name == "closed":
            return why_not
        same = (BREAKERS.c.backend == backend) & (BREAKERS.c.state == "open") & (BREAKERS.c.since == state.since)
        probing = sa.update(BREAKERS).where(same).values(state="half_open", since=now, probe=attempt_id)
        is_first = connection.execute(probing).rowcount == 1
        return None if is_first else "its breaker is half open: a probe is under way"

    def count(self, connection: Connection, attempt: Attempt, is_success: bool | None, now: float) -> None:
        insert_new(connection, BREAKERS, {"backend": attempt.backend, "state": "closed", "since": 0.0})
        row = sa.select(BREAKERS).where(BREAKERS.c.backend == attempt.backend).with_for_update()
        state = _breaker_of(connection.execute(row).one())
        if is_success is None:
            if state.probe != attempt.id:
                return
            after = BreakerState("open", state.since - self._policy.breaker.open_s)  # the next job is the probe
        else:
            rules = self._policy.breaker
            since = max(state.since, now - rules.window_s)
            counted = (ATTEMPTS.c.backend == attempt.backend) & ATTEMPTS.c.is_success.is_not(None)
            query = sa.select(ATTEMPTS.c.is_success).where(counted & (ATTEMPTS.c.ended_at >= since))
            latest = connection.scalars(query.order_by(ATTEMPTS.c.ended_at.desc()).limit(rules.window)).all()
            after = state.after(rules, attempt.id, [bool(each) for each in latest], now, is_success=is_success)
        if after != state:
            fields = {"state": after.name, "since": after.since, "probe": after.probe}
            connection.execute(sa.update(BREAKERS).where(BREAKERS.c.backend == attempt.backend).values(**fields))

    def budget_left_usd(self, connection: Connection, tenant: str, day: str) -> float | None:
        """None where there is no limit."""
        limit = self._policy.budget_usd(tenant)
        if limit is None:
            return None
        row = connection.execute(statements.BUDGET, {"of_tenant": tenant, "of_day": day}).one_or_none()
        return limit - (0 if row is None else row.reserved_microusd + row.spent_microusd) / MICROUSD


def insert_new(connection: Connection, table: sa.Table, fields: Mapping[str, Any]) -> None:
    """Nothing where there is a row already."""
    connection.execute(statements.insert_new(connection.dialect.name, table), fields)


def breakers(connection: Connection) -> dict[str, BreakerState]:
    return {row.backend: _breaker_of(row) for row in connection.execute(statements.BREAKER_STATES)}


def _breaker_of(row: Row[Any]) -> BreakerState:
    return BreakerState(row.state, row.since, row.probe)
