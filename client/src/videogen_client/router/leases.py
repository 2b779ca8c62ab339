"""Whose a job is. Each transaction that changes a job begins with one of these, which locks its row."""

from __future__ import annotations

from sqlalchemy import Connection

from . import statements


class LeaseLost(Exception):
    """The job belongs to another process now."""


def own(connection: Connection, job_id: str, owner: str) -> None:
    """Raises LeaseLost where the job is not the owner's, or has ended."""
    if connection.execute(statements.OWNED, {"of_job": job_id, "of_owner": owner}).one_or_none() is None:
        raise LeaseLost(job_id)


def prolong(connection: Connection, job_id: str, owner: str, until: float) -> None:
    """As `own`, with a lease that ends at `until`, in seconds of the epoch: nobody takes the job before."""
    lease = {"of_job": job_id, "of_owner": owner, "until": until}
    if connection.execute(statements.PROLONG, lease).rowcount == 0:
        raise LeaseLost(job_id)
