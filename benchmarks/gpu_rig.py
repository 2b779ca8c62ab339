"""Engines of the worker over the random weights of `gpu_models`, one after the other on one device.

All but the reader of the weights is the worker's own: `Engine`, `LoadedModels`, the memory plan, every technique.
"""

from __future__ import annotations

import gc
import hashlib
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from benchmarks.gpu_models import Scale, fill, lora, write_model
from worker.base.settings import Settings
from worker.engine import Engine, Rendering, device
from worker.engine.device import planner_for
from worker.engine.models import components
from worker.engine.techniques import attention
from worker.request import ModelSpec
from worker.request.plan import MemoryPlan, Planner, Shape
from worker.weights.loras import DistilledFiles, LoraFile


class Rig:
    """Makes engines for one scale; `home` is a folder for what they need on the disk."""

    def __init__(self, scale: Scale, home: Path) -> None:
        self.scale = scale
        self.home = home
        self.device = device.detect() if scale.is_published else torch.device("cpu")
        self.clip = Clip(scale)
        self._folder = home / "model"
        components.quiet_libraries()
        write_model(scale, self._folder)

    def folder(self, spec: ModelSpec, stop: threading.Event, prepared: str) -> Path:  # noqa: ARG002 - as ModelSource
        return self._folder

    def engine(
        self, settings: Settings, spec: ModelSpec, *, backend: attention.Backend | None = None, as_fp8: bool = False
    ) -> Engine:
        """An engine. backend: the one attention backend to try before torch's own; None: the worker's choice.

        as_fp8: on a CPU, where the plan is always fp32, plan for fp8 weights all the same.
        """
        planner = self._planner(settings)
        if as_fp8 and planner.gpu is None:
            planner = _Fp8Planner(None, settings)
        tried = attention.BACKENDS if backend is None else (backend,)
        with mock.patch.object(attention, "BACKENDS", tried):
            engine = Engine(self, (spec,), planner, self.device)
        engine.models._read = fill  # the engine has no argument for it
        return engine

    def _planner(self, settings: Settings) -> Planner:
        """For the GPU that is here; the tiny size is for the CPU."""
        return planner_for(settings) if self.scale.is_published else Planner(None, settings)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak(self) -> None:
        """Let go of what nobody holds, and count the peak from here."""
        gc.collect()
        device.reset_peak()

    def peak_bytes(self) -> int | None:
        return device.peak_bytes()

    def release(self, engine: Engine, spec: ModelSpec) -> None:
        """Give the memory of an engine's model back."""
        engine.models.drop(spec.key)
        torch._dynamo.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def distilled_loras(self) -> DistilledFiles:
        """Random LoRAs of rank 64 on every linear layer of the blocks, as the distilled ones have."""
        files = []
        for side in ("high", "low"):
            file = self.home / f"{side}.safetensors"
            if not file.exists():
                save_file(lora(self.scale), file)
            with file.open("rb") as stream:
                files.append(LoraFile(file, hashlib.file_digest(stream, "sha256").hexdigest(), file.name))
        return DistilledFiles("random", *files)


@dataclass(frozen=True, slots=True)
class _Fp8Planner(Planner):
    """Only for `Rig.engine`: the worker plans no fp8 for a CPU."""

    def plan(self, spec: ModelSpec, shape: Shape, **options: Any) -> MemoryPlan:
        return replace(Planner.plan(self, spec, shape, **options), precision="fp8")


class Clip:
    """What is compressed in the place of the decoded frames: a textured picture that moves.

    The frames of random weights are noise, over which an encoder spends many times what a picture takes.
    """

    _CELLS = (3, 12, 48, 192)

    def __init__(self, scale: Scale) -> None:
        self._height, self._width = scale.height, scale.width
        size = (scale.height + scale.num_frames, scale.width + 2 * scale.num_frames)
        generator = torch.Generator().manual_seed(0)
        picture = torch.zeros(1, 3, *size)
        for number, cells in enumerate(self._CELLS):
            octave = torch.rand(1, 3, cells, cells, generator=generator)
            picture += functional.interpolate(octave, size, mode="bilinear") / 2**number
        picture += 0.02 * torch.randn(picture.shape, generator=generator)
        levels = ((picture - picture.min()) / (picture.max() - picture.min()) * 255).to(torch.uint8)
        self._picture = levels[0].permute(1, 2, 0).contiguous().numpy()

    def frame(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3]: one row and two columns further than the one before."""
        part = self._picture[number : number + self._height, 2 * number : 2 * number + self._width]
        return np.ascontiguousarray(part)

    def in_place_of(self, rendering: Rendering) -> Rendering:
        """`rendering`, whose frames are decoded as ever and then exchanged."""

        def frames() -> Generator[np.ndarray]:
            with closing(rendering.frames()) as decoded:
                for number, frame in enumerate(decoded):
                    exchanged = self.frame(number)
                    if frame.shape != exchanged.shape:
                        raise ValueError(f"a frame of {frame.shape} was decoded, not of {exchanged.shape}")
                    yield exchanged

        return replace(rendering, frames=frames)
