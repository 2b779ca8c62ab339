"""What the router counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

JOBS = Counter("videogen_router_jobs", "Jobs that ended", ["tier", "status"])
DECISIONS = Counter("videogen_router_decisions", "Candidates that were chosen or not", ["backend", "chosen"])
ATTEMPTS = Counter("videogen_router_attempts", "Attempts that ended", ["backend", "state"])
COST = Counter("videogen_router_cost_usd", "What attempts cost, in USD", ["backend"])
IN_FLIGHT = Gauge("videogen_router_jobs_in_flight", "Jobs that this process drives")
DECISION_S = Histogram(
    "videogen_router_decision_seconds",
    "Seconds of a decision, with its writing",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0),
)
