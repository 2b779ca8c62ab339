"""The tables of the store. Money is in millionths of a US dollar, times are seconds of the epoch."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

JOBS = Table(
    "router_jobs",
    METADATA,
    Column("id", String, primary_key=True),
    Column("tenant", String, nullable=False),
    Column("key", String, nullable=False),
    Column("request", Text, nullable=False),
    Column("day", String, nullable=False),
    Column("status", String, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("deadline_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("owner", String, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, default=False),
    Column("route", Text, nullable=False, default="[]"),
    Column("result", Text),
    Column("error", Text),
    UniqueConstraint("tenant", "key"),
    Index("router_jobs_claims", "status", "lease_until"),
)

ATTEMPTS = Table(
    "router_attempts",
    METADATA,
    Column("id", String, primary_key=True),
    Column("job_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("backend", String, nullable=False),
    Column("state", String, nullable=False),
    Column("handle", String),
    Column("reserved_microusd", BigInteger, nullable=False),
    Column("cost_microusd", BigInteger),
    Column("is_success", Boolean),
    Column("begun_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("why", Text),
    UniqueConstraint("job_id", "number"),
    Index("router_attempts_outcomes", "backend", "ended_at"),
)

BUDGETS = Table(
    "router_budgets",
    METADATA,
    Column("tenant", String, primary_key=True),
    Column("day", String, primary_key=True),
    Column("reserved_microusd", BigInteger, nullable=False, default=0),
    Column("spent_microusd", BigInteger, nullable=False, default=0),
)

BREAKERS = Table(
    "router_breakers",
    METADATA,
    Column("backend", String, primary_key=True),
    Column("state", String, nullable=False),
    Column("since", Double, nullable=False),
    Column("probe", String),
)
