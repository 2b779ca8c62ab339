"""The engine's work that all processes of a crew do alike: load models and make latents.

With one process every call is local. In a crew a stop must reach all processes at the same place, so it waits for the
first step. A failure within a step cannot be fixed, because the other processes wait for a result that is never sent:
the crew is ended, and the worker has to restart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from worker.base.errors import OutOfMemory, WorkerError
from worker.base.stop import Stop
from worker.engine.denoise import Denoised, Denoiser, Watcher
from worker.engine.distributed import Crew, CrewLost, Dismissed
from worker.engine.models.pool import Loaded, LoadedModels
from worker.engine.preview import Preview
from worker.engine.techniques import Techniques
from worker.engine.video import Video
from worker.request import ModelSpec
from worker.request.plan import MemoryPlan


class DeviceLost(Exception):
    """The GPU, or a crew of several, is in a state that only a new process can leave."""


class CrewOutOfMemory(OutOfMemory, DeviceLost):
    """Out of memory in a crew, where one process cannot try again while the others wait for it."""


@dataclass(frozen=True, slots=True)
class Preload:
    """An order to a follower: start loading these models."""

    wanted: tuple[tuple[ModelSpec, MemoryPlan], ...]


@dataclass(frozen=True, slots=True)
class Make:
    """An order to a follower: take part in the steps of this video. `fell_back`: without what gave NaN before."""

    video: Video
    fell_back: bool


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
        """Start loading the models; see `LoadedModels.preload`."""
        self._crew.begin(Preload(tuple(wanted)))
        failure = None
        try:
            self._models.preload(wanted, stop)
        except Exception as raised:  # noqa: BLE001 - `agree` raises it, in every process
            failure = raised
        self._crew.agree(failure)

    def fall_back(self) -> tuple[str, ...]:
        """Turn off what may have made latents that are no picture; see `Techniques.fall_back`."""
        self._fell_back = True
        return self._techniques.fall_back()

    def latents(self, video: Video, watcher: Watcher, stop: Stop) -> tuple[Loaded, float, Denoised]:
        """The model, the seconds until it could be used, and the latents of one video.

        Each call is one try of the video. Raises what loading and denoising raise, and DeviceLost where a crew cannot
        go on.
        """
        try:
            return self._latents(video, watcher, stop)
        except CrewLost as failure:
            self._crew.disband()
            raise DeviceLost("a process of the crew is gone") from failure

    def follow(self, order: object) -> None:
        """Carry out an order of the leader, which also returns the latents and reports the errors that all processes
        raise at the same place. Any other error ends this process.
        """
        if isinstance(order, Preload):
            self.preload(order.wanted, Stop())
        elif isinstance(order, Make):
            if order.fell_back and not self._fell_back:
                self.fall_back()
            with suppress(WorkerError, FloatingPointError):
                self._latents(order.video, _Unwatched(), Stop())

    def _latents(self, video: Video, watcher: Watcher, stop: Stop) -> tuple[Loaded, float, Denoised]:
        began = time.perf_counter()
        self._crew.begin(Make(_unseen(video), self._fell_back))
        watcher.loading(0.0)
        alone = self._crew.size == 1
        loaded, failure = None, None
        try:
            loaded = self._models.use(video.spec, video.plan, stop if alone else Stop(), _begun(watcher))
        except Exception as raised:  # noqa: BLE001 - as above
            failure = raised
        self._crew.agree(failure)
        if loaded is None:  # never: agree has raised
            raise CrewLost
        load_s = time.perf_counter() - began
        return loaded, load_s, self._denoised(video, loaded, watcher, stop)

    def _denoised(self, video: Video, loaded: Loaded, watcher: Watcher, stop: Stop) -> Denoised:
        try:
            denoised = self._denoiser.run(video, loaded, watcher, stop)
        except (WorkerError, FloatingPointError, Dismissed):  # every process raises these at the same place
            self._crew.done()
            raise
        except Exception as failure:
            if self._crew.size == 1:
                raise
            self._crew.disband()
            if isinstance(failure, torch.OutOfMemoryError):
                raise CrewOutOfMemory(
                    "the GPUs' memory does not hold this video: send a smaller size or fewer frames",
                    path=video.request.at("num_frames"),
                ) from failure
            raise DeviceLost("the crew failed within a step") from failure
        self._crew.done()
        return denoised


def _begun(watcher: Watcher) -> Callable[[float], None]:
    """Passes on every share but 0.0, which says that a try begins."""

    def loading(share: float) -> None:
        if share > 0.0:
            watcher.loading(share)

    return loading


def _unseen(video: Video) -> Video:
    """Without previews, which the leader makes; it ends where they end all the same."""
    preview = replace(video.request.preview, kind="off")
    return replace(video, request=replace(video.request, preview=preview))


class _Unwatched:
    """The leader alone reports progress."""

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...

    def preview(self, preview: Preview) -> None: ...
