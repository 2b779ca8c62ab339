"""Weights that arrive when a test lets them, and a video that is made meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.kits.engine_kit import Quiet, engine_with, pixels, plan
from tests.kits.videos import given
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.request.plan import MemoryPlan
from worker.weights import tensors
from worker.weights.tensors.reading import Target

PATIENCE_S = 60.0


class Volume:
    """Reads as the worker does, but what is closed waits: a component is read when it is let through."""

    def __init__(self, *closed: str) -> None:
        self._open = {name: threading.Event() for name in closed}
        self.asked = {name: threading.Event() for name in closed}
        self.order: list[str] = []
        self.failures: dict[str, Exception] = {}

    def let(self, *names: str) -> None:
        for name in names if names else tuple(self._open):
            self._open[name].set()

    def __call__(self, targets: list[Target], *, check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
        folder = targets[0].stored.path.parent
        name = f"{folder.parent.name}/{folder.name}"
        self.order.append(name)
        for closed in (name, folder.name):
            if closed in self._open:
                self.asked[closed].set()
                while not self._open[closed].wait(0.01):
                    check()
        if (failure := self.failures.pop(folder.name, None)) is not None:
            raise failure
        tensors.reading.read(targets, check=check, on_bytes=on_bytes)


Reading = Callable[..., tuple[Engine, Volume]]
Frames = dict[str, np.ndarray]


@pytest.fixture
def reading() -> Iterator[Reading]:
    """Makes an engine and what it reads by; `closed` waits to be let through. No engine leaves a thread behind."""
    made: list[Engine] = []

    def make(*closed: str, fixed: MemoryPlan | None = None, **options: Any) -> tuple[Engine, Volume]:
        engine = engine_with(plan("resident") if fixed is None else fixed, **options)
        engine.models._read = volume = Volume(*closed)
        made.append(engine)
        return engine, volume

    yield make
    for engine in made:
        for key in list(engine.models._models):
            engine.models.drop(key)


class InBackground:
    """A video that is made in another thread, as far as it gets."""

    def __init__(self, engine: Engine, video: Any, conditioning: Conditioning, stop: Stop | None = None) -> None:
        self.watcher = Watcher()
        self.failure: BaseException | None = None
        self.frames: np.ndarray | None = None
        self.parameters: dict[str, Any] = {}
        self._given = engine, video, conditioning, Stop() if stop is None else stop
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        engine, video, conditioning, stop = self._given
        try:
            rendering = engine.generate(given(engine, video, conditioning), watcher=self.watcher, stop=stop)
            self.parameters = rendering.parameters
            self.frames = pixels(rendering)
        except BaseException as failure:  # noqa: BLE001 - looked at by the test
            self.failure = failure

    def end(self) -> InBackground:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self


class Watcher(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[float] = []
        self.first_step = threading.Event()

    def loading(self, fraction: float) -> None:
        self.loaded.append(fraction)

    def generating(self, fraction: float) -> None:
        super().generating(fraction)
        if fraction > 0:
            self.first_step.set()
