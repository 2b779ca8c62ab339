"""The models in memory: loads what a video needs, and makes room for it.

A model is used before it is whole: text encoder and high-noise expert are waited for, the rest arrives while they work.
Text-to-video and image-to-video share text encoder, tokenizer and VAE. Where the experts of both do not fit on the GPU
together, those of the model that is not needed wait in host memory, or go where that is full too.
"""

from __future__ import annotations

import functools
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import psutil
import torch
from diffusers import WanTransformer3DModel

from worker.base.stop import Stop
from worker.engine.models import components as loading
from worker.engine.models import precision
from worker.engine.models.arrivals import Part, Progress, Turns, wait_for
from worker.engine.models.components import Components, Places, Recipe, SharedParts
from worker.engine.models.precision import Arithmetic
from worker.engine.models.residency import Residency
from worker.engine.models.skeletons import Change, Place, Read
from worker.request import ModelSpec
from worker.request.plan import Gpu, MemoryPlan
from worker.weights.tensors import reading

logger = logging.getLogger(__name__)
_STREAMED = ("group_offload", "sequential")
_HOST = torch.device("cpu")


class ModelSource(Protocol):
    """Where the folder of a model comes from: a volume, the hub, or the built-in demo."""

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: Literal["bf16", "fp8"]) -> Path: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, or on its way there, arranged as `plan` says."""

    spec: ModelSpec
    plan: MemoryPlan
    components: Components
    residency: Residency

    @property
    def experts(self) -> tuple[WanTransformer3DModel, ...]:
        """Waits until the weights of both are there."""
        both = (self.components.transformer, self.components.transformer_2)
        return tuple(expert for expert in both if expert is not None)

    @property
    def expert_bytes(self) -> int:
        return sum(tensor.nbytes for expert in self.components.modules for tensor in expert.parameters())

    @property
    def is_whole(self) -> bool:
        return all(part.there for part in self.components.parts)

    @property
    def failed(self) -> bool:
        return any(part.failed for part in self.components.parts)

    def can_become(self, plan: MemoryPlan) -> bool:
        """Whether the weights in memory serve `plan` too. What is streamed stays so: see `residency`."""
        return self.plan.residency not in _STREAMED and self.plan.precision == plan.precision

    def needed_first(self) -> list[Part]:
        """What no video can begin without: all but the low-noise expert, and but the VAE where a text may be enough."""
        parts = self.components.parts
        if self.plan.residency in _STREAMED:
            return list(parts)
        later = {*self.components.modules[1:]}
        if "text_to_video" in self.spec.modes:
            later.add(self.components.shared.vae)
        return [part for part in parts if part.module not in later]

    def cancel(self) -> None:
        """End the reading of what is not loaded yet; what is lost with it has to be loaded again."""
        if self.components.arrivals is not None:
            self.components.arrivals.cancel()


class LoadedModels:
    """Not thread-safe: the engine calls it under its lock.

    `on_expert` is called once with each expert when its weights are there, in the engine's thread. arithmetic: of
    quantised layers. overlap: give models out before they are whole.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        device: torch.device,
        dtype: torch.dtype,
        gpu: Gpu | None,
        host_bytes: int | None,
        on_expert: Callable[[WanTransformer3DModel, MemoryPlan], None] = lambda *_: None,
        arithmetic: Arithmetic = "cast",
        overlap: bool = True,
        read: Read = reading.read,
    ) -> None:
        self._source = source
        self._device = device
        self._dtype = dtype
        self._gpu = gpu
        self._host_bytes = host_bytes
        self._on_expert = on_expert
        self._arithmetic: Arithmetic = arithmetic
        self._overlap = overlap
        self._read = read
        self._turns = Turns()
        self._models: dict[str, Loaded] = {}
        self._evicted: set[str] = set()
        self._told_cold_start = False

    def __getitem__(self, key: str) -> Loaded:
        """Raises KeyError for a model that is not loaded."""
        return self._models[key]

    def use(
        self, spec: ModelSpec, plan: MemoryPlan, stop: Stop, on_progress: Callable[[float], None] = lambda _: None
    ) -> Loaded:
        """`spec` arranged as `plan` says, with room for what the plan expects to take at its peak.

        Waits for the parts that a video needs first; the others may still be on their way and are waited for where
        they are needed. `on_progress` gets the share of the bytes that was read, 0 to 1. Raises the reason of `stop`
        at once, ModelUnavailable, and torch's own error where memory runs out while loading.
        """
        progress = Progress(stop, on_progress)
        loaded = self._arranged(spec, plan, progress)
        for part in loaded.components.parts:
            part.stop = stop
        self._wait(loaded, progress)
        return loaded

    def preload(self, wanted: Sequence[tuple[ModelSpec, MemoryPlan]], stop: Stop) -> None:
        """Have models loaded before they are asked for, in this order.

        Returns once everything that can be refused was looked at; the last of them goes on arriving.
        """
        for number, (spec, plan) in enumerate(wanted, start=1):
            loaded = self._arranged(spec, plan, Progress(stop))
            if number < len(wanted) or not self._overlap:
                wait_for(loaded.components.parts, Progress(stop))

    def cold_start(self, loaded: Loaded) -> dict[str, dict[str, float]]:
        """How the first model of this process came into memory, for the parameters of its first video; later nothing.

        Seconds from the start of the process until the first weights were read and until each part was there, and how
        long the video waited for them in all.
        """
        if self._told_cold_start:
            return {}
        self._told_cold_start = True
        parts = loaded.components.parts
        process_began = psutil.Process().create_time()
        seconds = {"begun": min((part.began_at for part in parts if part.began_at is not None), default=process_began)}
        seconds |= {part.name: part.ended_at for part in parts if part.ended_at is not None}
        told = {name: round(max(0.0, moment - process_began), 3) for name, moment in seconds.items()}
        return {"cold_start": {**told, "waited": round(sum(part.waited_s for part in parts), 3)}}

    def drop(self, key: str) -> None:
        """Forget a model whose state on the device cannot be trusted, and give its memory back."""
        found = self._models.pop(key, None)
        self._evicted.discard(key)
        if found is not None:
            found.cancel()
            found.residency.leave()
            del found
            gc.collect()  # parts and their loader refer to each other, and would hold the weights

    def clear(self) -> None:
        """Drop every model."""
        for key in [*self._models]:
            self.drop(key)

    def _wait(self, loaded: Loaded, progress: Progress) -> None:
        parts = loaded.needed_first() if self._overlap else list(loaded.components.parts)
        wait_for(parts, progress)

    def _arranged(self, spec: ModelSpec, plan: MemoryPlan, progress: Progress) -> Loaded:
        found = self._models.get(spec.key)
        if found is not None and found.failed:
            self.drop(spec.key)
            found = None
        shared = self._shared_with(spec)
        self._make_room(spec, plan)
        if shared is not None and any(part.failed for part in shared.parts):
            shared = None  # the model that was loading them had to make room
        if found is not None and _arranged_alike(found.plan, plan):
            found.residency.resume()
            self._evicted.discard(spec.key)
            return found
        components = None
        if found is not None and found.can_become(plan):
            components = self._moved(found, plan, progress)
        elif found is not None:
            wait_for(found.components.parts, progress)
            found.residency.leave()
            self.drop(spec.key)
        if components is None:
            components = self._load(spec, plan, shared, progress)
        if plan.residency in _STREAMED:
            wait_for(components.parts, progress)
        loaded = Loaded(spec, plan, components, Residency(components, plan, self._device))
        self._models[spec.key] = loaded
        self._evicted.discard(spec.key)
        return loaded

    def _moved(self, found: Loaded, plan: MemoryPlan, progress: Progress) -> Components:
        """The parts of a loaded model, for another plan: nothing is read again.

        What is loaded goes to its new place first. After out of memory that makes room for what is still being read to
        its old place.
        """
        found.residency.leave()
        if not found.is_whole and plan.residency not in _STREAMED:
            Residency(found.components, plan, self._device).leave()
        wait_for(found.components.parts, progress)
        return found.components

    def _load(self, spec: ModelSpec, plan: MemoryPlan, shared: SharedParts | None, progress: Progress) -> Components:
        stop = progress.stop
        folder = self._source.folder(spec, stop.event, "fp8" if plan.precision == "fp8" else "bf16")
        stop.check()
        recipe = Recipe(_places(plan, self._device), self._dtype, keep_fp8=plan.precision == "fp8", read=self._read)
        if precision.casts(plan, self._arithmetic):
            recipe = replace(recipe, prepare=lambda expert: precision.apply(expert, plan, self._dtype))
        elif plan.precision in ("fp8", "int8"):
            change = Change(self._device, lambda block: precision.quantise(block, plan, self._arithmetic))
            recipe = replace(recipe, change=change)
        components = loading.begin(folder, spec, shared, recipe, self._turns)
        for part, expert in zip(components.own, components.modules, strict=True):
            part.on_arrival = functools.partial(self._on_expert, expert, plan)
        logger.info("loading %s (%s)", spec.version, plan.rung)
        return components

    def _shared_with(self, spec: ModelSpec) -> SharedParts | None:
        """Text encoder and VAE of a model of the same kind that is loaded already."""
        for other in self._models.values():
            if _family(other.spec) == _family(spec) and not any(part.failed for part in other.components.shared.parts):
                return other.components.shared
        return None

    def _make_room(self, spec: ModelSpec, plan: MemoryPlan) -> None:
        others = [each for each in self._models.values() if each.spec.key != spec.key]
        for other in others:
            other.residency.leave()  # two models must not take turns at once: they share parts
        held = sum(each.expert_bytes for each in others if self._holds_device(each))
        if self._gpu is None or held + plan.estimated_peak_bytes <= self._gpu.budget_bytes:
            return
        for other in others:
            if self._holds_device(other):
                self._evict(other)

    def _holds_device(self, model: Loaded) -> bool:
        return model.plan.residency == "resident" and model.spec.key not in self._evicted

    def _evict(self, other: Loaded) -> None:
        began = time.perf_counter()
        models = [each for each in self._models.values() if each is not other]
        waiting = sum(each.expert_bytes for each in models if each.residency.has_experts_on_host)
        # What is still being read would be stored on the device.
        stays = other.is_whole and (self._host_bytes is None or waiting + other.expert_bytes <= self._host_bytes)
        if stays:
            other.residency.evict()
            self._evicted.add(other.spec.key)
        else:
            self.drop(other.spec.key)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        where = "host memory" if stays else "the volume"
        logger.info("%s made room and waits in %s, %.1f s", other.spec.version, where, time.perf_counter() - began)


def _places(plan: MemoryPlan, device: torch.device) -> Places:
    on_device = Place(device)
    # What takes turns or is streamed is loaded from pinned memory: read straight into it, it need not be copied there.
    in_turn = Place(_HOST, pinned_for=device if device.type == "cuda" else None)
    resident = plan.residency == "resident"
    return Places(
        text_encoder=on_device if resident and plan.text_encoder == "resident" else in_turn,
        vae=on_device if resident else in_turn,
        experts=on_device if resident else in_turn,
    )


def _arranged_alike(one: MemoryPlan, other: MemoryPlan) -> bool:
    return (one.precision, one.residency, one.text_encoder) == (other.precision, other.residency, other.text_encoder)


def _family(spec: ModelSpec) -> tuple[object, ...]:
    """Models of one family have the same text encoder and VAE. Those made for some sizes only have their own."""
    return spec.name, spec.extent
