"""The LoRAs of a run, those of the request and those that other techniques ask for, on the experts while it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from worker.acceleration import lora
from worker.acceleration.base import Run, Technique


class Adapters(Technique):
    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:
        if not run.adapters:  # nothing to wait for the low-noise expert's weights for
            yield
            return
        with lora.applied(run.components, run.adapters) as notes:
            run.warnings += notes
            yield
