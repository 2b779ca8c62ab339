"""The part of the engine's work that the processes of a crew have in common: models that arrive, and latents.

A process without others does the same, and waits for no one. In a crew a stop has to find all at the same place, so
it waits for the first step; and a failure in the midst of a step cannot be mended, because the others wait for a part
that never comes: the crew is given up, and the worker starts anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from worker.base.errors import OutOfMemory, WorkerError
from worker.base.stop import Stop
from worker.engine.denoise import Denoised, Denoiser, Given, Watcher
from worker.engine.distributed import Crew, CrewLost, Dismissed
from worker.engine.models.pool import Loaded, LoadedModels
from worker.engine.modes.base import Conditioning
from worker.engine.techniques import Techniques
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import MemoryPlan
from worker.weights.loras import DistilledFiles, LoraFile


class DeviceLost(Exception):
    """The GPU, or a crew of several, is in a state that only a new process can leave."""


class CrewOutOfMemory(OutOfMemory, DeviceLost):
    """Out of memory in a crew, where one process cannot try again while the others wait for it."""


@dataclass(frozen=True, slots=True)
class Preload:
    """An order to a follower: have these models come."""

    wanted: tuple[tuple[ModelSpec, MemoryPlan], ...]


@dataclass(frozen=True, slots=True)
class Make:
    """An order to a follower: take part in the steps of this video. `fell_back`: without what gave NaN before."""

    request: VideoRequest
    spec: ModelSpec
    prompt: str
    conditioning: Conditioning
    loras: tuple[LoraFile, ...]
    distilled: DistilledFiles | None
    plan: MemoryPlan
    fell_back: bool
    later: tuple[str, ...] = ()


class SharedWork:
    """Not thread-safe: the engine calls it under its lock."""

    def __init__(self, models: LoadedModels, denoiser: Denoiser, techniques: Techniques, crew: Crew) -> None:
        self._models = models
        self._denoiser = denoiser
        self._techniques = techniques
        self._crew = crew
        self._fell_back = False

    @property
    def crew_size(self) -> int:
        return self._crew.size

    def preload(self, wanted: Sequence[tuple[ModelSpec, MemoryPlan]], stop: Stop) -> None:
        """Have the models come; see `LoadedModels.preload`."""
        self._crew.begin(Preload(tuple(wanted)))
        failure = None
        try:
            self._models.preload(wanted, stop)
        except Exception as raised:  # noqa: BLE001 - the crew has to hear of it first
            failure = raised
        self._crew.agree(failure)

    def fall_back(self) -> tuple[str, ...]:
        """Do without what may have given latents that are no picture; see `Techniques.fall_back`."""
        self._fell_back = True
        return self._techniques.fall_back()

    def latents(self, given: Given, plan: MemoryPlan) -> tuple[Loaded, float, Denoised]:
        """The model, the seconds until it could be used, and the latents of one video.

        Each call is one try of the video, and `given.watcher` is told a share of 0.0 loaded when it begins, then alone.
        Raises what the loading and the denoising raise, and DeviceLost where a crew cannot go on.
        """
        try:
            return self._latents(given, plan)
        except CrewLost as failure:
            self._crew.disband()
            raise DeviceLost("a process of the crew is gone") from failure

    def follow(self, order: object) -> None:
        """Carry out an order of the lead. The latents are the lead's, and are dropped here, as is what the lead tells
        of itself; anything else ends the process."""
        if isinstance(order, Preload):
            self.preload(order.wanted, Stop())
        elif isinstance(order, Make):
            if order.fell_back and not self._fell_back:
                self.fall_back()
            given = Given(
                order.request,
                order.spec,
                order.prompt,
                order.conditioning,
                order.loras,
                order.distilled,
                _Unwatched(),
                Stop(),
                order.later,
            )
            with suppress(WorkerError, FloatingPointError):
                self._latents(given, order.plan)

    def _latents(self, given: Given, plan: MemoryPlan) -> tuple[Loaded, float, Denoised]:
        began = time.perf_counter()
        self._crew.begin(
            Make(
                given.request,
                given.spec,
                given.prompt,
                given.conditioning,
                tuple(given.loras),
                given.distilled,
                plan,
                self._fell_back,
                given.later,
            )
        )
        given.watcher.loading(0.0)
        alone = self._crew.size == 1
        loaded, failure = None, None
        try:
            loaded = self._models.use(given.spec, plan, given.stop if alone else Stop(), _begun(given.watcher))
        except Exception as raised:  # noqa: BLE001 - as above
            failure = raised
        self._crew.agree(failure)
        if loaded is None:  # never: agree has raised
            raise CrewLost
        load_s = time.perf_counter() - began
        return loaded, load_s, self._denoised(given, loaded, plan)

    def _denoised(self, given: Given, loaded: Loaded, plan: MemoryPlan) -> Denoised:
        try:
            denoised = self._denoiser.run(given, loaded, plan)
        except (WorkerError, FloatingPointError, Dismissed):  # what every process comes to at the same place
            self._crew.done()
            raise
        except Exception as failure:
            if self._crew.size == 1:
                raise
            self._crew.disband()
            if isinstance(failure, torch.OutOfMemoryError):
                raise CrewOutOfMemory(
                    "the GPUs' memory does not hold this video: send a smaller size or fewer frames",
                    path=given.request.at("num_frames"),
                ) from failure
            raise DeviceLost("the crew failed in the midst of a step") from failure
        self._crew.done()
        return denoised


def _begun(watcher: Watcher) -> Callable[[float], None]:
    """Tells `watcher` what is loaded once there is something: 0.0 says that a try begins."""

    def loading(share: float) -> None:
        if share > 0.0:
            watcher.loading(share)

    return loading


class _Unwatched:
    """A follower's progress is no one's: the lead tells of its own."""

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...
