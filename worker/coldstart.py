"""What the start of a worker takes and costs, part by part, from the start of its process until it is ready."""

from __future__ import annotations

import logging
import time

import psutil

from worker import metrics
from worker.answers import cost_usd
from worker.log import fields

logger = logging.getLogger(__name__)


class ColdStart:
    """Call `reached` at the end of each part and `ready` once; the time in between belongs to the part that ends."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def reached(self, part: str) -> None:
        """`settings`, `imports`, `load`: whatever is worth a line of its own."""
        self._ends[part] = time.time()

    def ready(self, gpu_hourly_usd: float | None) -> dict[str, float]:
        """Log and record the whole start; answers the seconds by part, then `ready` (the rest) and `total`."""
        began = psutil.Process().create_time()
        self.reached("ready")
        seconds: dict[str, float] = {}
        before = began
        for part, end in self._ends.items():
            seconds[part] = max(0.0, end - before)  # the clock of the system may be set meanwhile
            before = end
        total_s = sum(seconds.values())
        cost = cost_usd(total_s, gpu_hourly_usd)
        parts = ", ".join(f"{part} {value:.2f}" for part, value in seconds.items())
        logger.info(
            "cold start: %.2f s (%s), %s",
            *(total_s, parts, "cost unknown" if cost is None else f"{cost:g} USD"),
            extra=fields(
                stage="cold_start",
                seconds=round(total_s, 3),
                timings={part: round(value, 3) for part, value in seconds.items()},
                cost_usd=cost,
            ),
        )
        metrics.cold_start({**seconds, "total": total_s}, cost)
        return {**seconds, "total": total_s}
