"""The models in memory: loads what a video needs, and makes room for it.

Text-to-video and image-to-video share text encoder, tokenizer and VAE. Where the experts of both do not fit on the GPU
together, those of the model that is not needed wait in host memory, or go where that is full too.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from diffusers import WanTransformer3DModel

from worker import loading
from worker.acceleration import quantize
from worker.acceleration.residency import Residency
from worker.memory import Gpu, MemoryPlan
from worker.models import ModelSpec
from worker.stop import Stop

logger = logging.getLogger(__name__)
_STREAMED = ("group_offload", "sequential")


class ModelSource(Protocol):
    """Where the folder of a model comes from: a volume, the hub, or the built-in demo."""

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: Literal["bf16", "fp8"]) -> Path: ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, arranged as `plan` says."""

    spec: ModelSpec
    plan: MemoryPlan
    components: loading.Components
    residency: Residency

    @property
    def experts(self) -> tuple[WanTransformer3DModel, ...]:
        both = (self.components.transformer, self.components.transformer_2)
        return tuple(expert for expert in both if expert is not None)

    @property
    def expert_bytes(self) -> int:
        return sum(tensor.nbytes for expert in self.experts for tensor in expert.parameters())


class LoadedModels:
    """Not thread-safe: the engine calls it under its lock."""

    def __init__(
        self, source: ModelSource, *, device: torch.device, dtype: torch.dtype, gpu: Gpu | None, host_bytes: int | None
    ) -> None:
        self._source = source
        self._device = device
        self._dtype = dtype
        self._gpu = gpu
        self._host_bytes = host_bytes
        self._models: dict[str, Loaded] = {}
        self._evicted: set[str] = set()

    def __getitem__(self, key: str) -> Loaded:
        return self._models[key]

    def use(self, spec: ModelSpec, plan: MemoryPlan, stop: Stop) -> Loaded:
        """`spec` arranged as `plan` says, with room for what the plan expects to take at its peak."""
        self._make_room(spec, plan)
        found = self._models.get(spec.key)
        if found is not None and _arranged_alike(found.plan, plan):
            found.residency.resume()
            self._evicted.discard(spec.key)
            return found
        components = None
        if found is not None:
            found.residency.leave()
            if found.plan.residency not in _STREAMED and found.plan.precision == plan.precision:
                components = found.components
            else:
                del self._models[spec.key]
        if components is None:
            components = self._load(spec, plan, stop)
        loaded = Loaded(spec, plan, components, Residency(components, plan, self._device))
        self._models[spec.key] = loaded
        self._evicted.discard(spec.key)
        return loaded

    def drop(self, key: str) -> None:
        """Forget a model whose state on the device cannot be trusted, and give its memory back."""
        found = self._models.pop(key, None)
        self._evicted.discard(key)
        if found is not None:
            found.residency.leave()

    def _load(self, spec: ModelSpec, plan: MemoryPlan, stop: Stop) -> loading.Components:
        began = time.perf_counter()
        folder = self._source.folder(spec, stop.event, "fp8" if plan.precision == "fp8" else "bf16")
        stop.check()
        # What is to be swapped or quantised is made ready in host memory; the residency moves it from there.
        at_once = plan.residency == "resident" and plan.precision in ("fp32", "bf16")
        device = self._device if at_once else torch.device("cpu")
        shared = self._shared_with(spec)
        if shared is None:
            shared = loading.load_shared(folder, device=torch.device("cpu"), dtype=self._dtype)

        def finish(expert: WanTransformer3DModel) -> None:
            stop.check()
            quantize.apply(expert, plan, self._dtype)

        components = loading.load(folder, spec, shared, device=device, dtype=self._dtype, finish=finish)
        stop.check()
        logger.info("loaded %s (%s) in %.1f s", spec.version, plan.rung, time.perf_counter() - began)
        return components

    def _shared_with(self, spec: ModelSpec) -> loading.SharedParts | None:
        """Text encoder and VAE of a model of the same kind that is loaded already."""
        for other in self._models.values():
            if other.spec.name == spec.name:
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
        waiting = sum(each.expert_bytes for each in self._models.values() if not self._holds_device(each))
        stays = self._host_bytes is None or waiting + other.expert_bytes <= self._host_bytes
        if stays:
            for expert in other.experts:
                expert.to("cpu")
            self._evicted.add(other.spec.key)
        else:
            del self._models[other.spec.key]
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        where = "host memory" if stays else "the volume"
        logger.info("%s made room and waits in %s, %.1f s", other.spec.version, where, time.perf_counter() - began)


def _arranged_alike(one: MemoryPlan, other: MemoryPlan) -> bool:
    return (one.precision, one.residency, one.text_encoder) == (other.precision, other.residency, other.text_encoder)
