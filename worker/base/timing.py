"""Where the seconds go: of a stage (`took`, `timed`), of a video or job (`Stopwatch`), of the start (`ColdStart`)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from worker.base import metrics
from worker.base.log import fields

logger = logging.getLogger(__name__)


class ColdStart:
    """Call `reached` at the end of each part and `ready` once; the time in between belongs to the part that ends."""

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}

    def reached(self, part: str) -> None:
        """`settings`, `imports`, `load`: whatever is worth a line of its own."""
        self._ends[part] = time.time()

    def ready(self, gpu_hourly_usd: float | None) -> dict[str, float]:
        """Log and record the whole start; returns the seconds by part, then `ready` (the rest) and `total`."""
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


WAITING = "waiting"
RETRY = "retry"
"""Seconds of failed tries of a video that was tried again, after out of memory or NaN."""


class Stopwatch:
    """Where the seconds of one video, or of one job, went: each moment from its making on belongs to one stage.

    What no stage claims is `waiting`: for the GPU's turn, for a thread. Used by one thread at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._mark = clock()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Everything since the last lap was `stage`."""
        self._add(stage, self._since_mark())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens inside is the stage, also where it fails."""
        self.lap(WAITING)
        try:
            yield
        finally:
            self.lap(name)

    def split(self, stages: Mapping[str, float], *, around: str = WAITING) -> None:
        """Everything since the last lap was these stages, measured by whoever did them, and `around` what is left."""
        lap_s = self._since_mark()
        for stage, seconds in stages.items():
            self._add(stage, seconds)
        self._add(around, max(0.0, lap_s - sum(stages.values())))

    def seconds(self) -> dict[str, float]:
        """By stage, up to the last lap, unrounded."""
        return dict(self._seconds)

    def worked_s(self) -> float:
        """Seconds of all stages but waiting, up to the last lap."""
        return sum(seconds for stage, seconds in self._seconds.items() if stage != WAITING)

    def read(self) -> dict[str, float]:
        """Seconds in the order in which the stages began, then `waiting`, then `total`, their sum; in milliseconds."""
        rounded = {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}
        waiting = rounded.pop(WAITING, 0.0)
        return {**rounded, WAITING: waiting, "total": round(sum(rounded.values()) + waiting, 3)}

    def _since_mark(self) -> float:
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        return seconds

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


def cost_usd(seconds: float, gpu_hourly_usd: float | None) -> float | None:
    """What the GPU cost for `seconds`; None where the operator has not set its price."""
    return None if gpu_hourly_usd is None else round(seconds / 3600 * gpu_hourly_usd, 6)


def took(index: int | None, stage: str, seconds: float, **figures: object) -> None:
    """A stage of video `index` (None: of the whole job) ended, well or not."""
    whose = "job" if index is None else f"video {index}"
    more = {} if index is None else {"video": index}
    line = fields(stage=stage, seconds=round(seconds, 3), **more, **figures)
    logger.info("%s: %s took %.3f s", whose, stage, seconds, extra=line)
    metrics.stage(stage, seconds)


@contextmanager
def timed(index: int | None, stage: str, **figures: object) -> Iterator[dict[str, object]]:
    """Report how long what happens inside took, with `figures` and what it adds to them."""
    began = time.perf_counter()
    try:
        yield figures
    finally:
        took(index, stage, time.perf_counter() - began, **figures)
