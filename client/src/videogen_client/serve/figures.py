"""What `/metrics` shows. Nothing of a request's content is in it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Figures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "videogen_facade_requests",
            "Requests by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "videogen_facade_request_seconds",
            "Seconds of a request, by route",
            ["method", "route"],
            buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self._ended = Counter("videogen_facade_videos_ended", "Videos by their end", ["status"], registry=self.registry)
        self.followed = Gauge("videogen_facade_videos_followed", "Videos that have not ended", registry=self.registry)

    def saw(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def ended(self, status: str) -> None:
        self._ended.labels(status).inc()
