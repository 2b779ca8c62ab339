"""The statements of every job, built once: SQLAlchemy takes longer to build one than SQLite to carry it out.

Parameters have names that no column has.
"""

from __future__ import annotations

import functools
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from .tables import ATTEMPTS, BREAKERS, BUDGETS, JOBS

_MINE = (JOBS.c.id == sa.bindparam("of_job")) & (JOBS.c.owner == sa.bindparam("of_owner")) & (JOBS.c.status == "open")
_GOING_ON = (ATTEMPTS.c.id == sa.bindparam("of_attempt")) & ATTEMPTS.c.ended_at.is_(None)
_BUDGET = (BUDGETS.c.tenant == sa.bindparam("of_tenant")) & (BUDGETS.c.day == sa.bindparam("of_day"))
_RESERVED = BUDGETS.c.reserved_microusd + sa.bindparam("reserved", type_=sa.BigInteger)
_SPENT = BUDGETS.c.spent_microusd + sa.bindparam("spent", type_=sa.BigInteger)

JOB = sa.select(JOBS).where(JOBS.c.id == sa.bindparam("of_job"))
JOB_OF_KEY = sa.select(JOBS).where(
    (JOBS.c.tenant == sa.bindparam("of_tenant")) & (JOBS.c.key == sa.bindparam("of_key"))
)
ATTEMPTS_OF_JOB = sa.select(ATTEMPTS).where(ATTEMPTS.c.job_id == sa.bindparam("of_job")).order_by(ATTEMPTS.c.number)
OWNED = sa.select(JOBS.c.id).where(_MINE).with_for_update()
PROLONG = sa.update(JOBS).where(_MINE).values(lease_until=sa.bindparam("until"))
BEGIN = sa.insert(ATTEMPTS)
GOING_ON = sa.select(ATTEMPTS.c.id).where(_GOING_ON)
SUBMITTED = sa.update(ATTEMPTS).where(_GOING_ON).values(state="submitted", handle=sa.bindparam("its_handle"))
BREAKER_STATES = sa.select(BREAKERS)
BUDGET = sa.select(BUDGETS).where(_BUDGET)
RESERVE = sa.update(BUDGETS).where(_BUDGET).values(reserved_microusd=_RESERVED, spent_microusd=_SPENT)
RESERVE_WITHIN = RESERVE.where(_RESERVED + BUDGETS.c.spent_microusd <= sa.bindparam("limit", type_=sa.BigInteger))


@functools.cache
def insert_new(dialect: str, table: sa.Table) -> Any:
    """Inserts nothing where there is a row already."""
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    return insert.on_conflict_do_nothing()
