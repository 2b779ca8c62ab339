"""One engine of the worker over random weights at full size, both sizes of video, and the notes that a run leaves."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_rates, gpu_rig, gpu_rows, gpu_videos
from benchmarks.gpu_models import SCALES
from worker.base.stop import Stop
from worker.request import ModelSpec
from worker.request.catalogue import with_distilled_fused

BEGAN = time.perf_counter()
GB = 1e9


class Notes:
    """Lines of the table, each also a line of results.jsonl."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "results.jsonl"
        self.lines: list[tuple[str, str, str]] = []

    def add(self, stage: str, what: str, value: object, **more: Any) -> None:
        shown = f"{value:.3f}" if isinstance(value, float) else str(value)
        extra = " ".join(f"{name}={_short(each)}" for name, each in more.items())
        self.lines.append((stage, what, f"{shown} {extra}".strip()))
        print(f"[{time.perf_counter() - BEGAN:6.1f} s] {stage} | {what} | {shown} {extra}", flush=True)
        with self._file.open("a") as file:
            entry = {"stage": stage, "what": what, "value": value, **more}
            file.write(json.dumps(entry, default=str) + "\n")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "_")


@dataclass(frozen=True)
class _OnTheSameWeights(ModelSpec):
    """Turbo's fused model, served from the weights that are loaded: random ones are as good for both."""

    @property
    def key(self) -> str:
        return self.base


class Bench:
    """One engine on random weights, and both sizes of video."""

    def __init__(self, notes: Notes, home: Path, *, tiny: bool) -> None:
        self.notes, self.home, self.tiny = notes, home, tiny
        self.small, self.large = SCALES["tiny" if tiny else "480p"], SCALES["tiny" if tiny else "720p"]
        self.rig = gpu_rig.Rig(self.small, home)
        self.device = self.rig.device
        self.on_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self._studio: Any = None
        self._clips = {self.small.name: self.rig.clip}
        self.rates: gpu_rates.Rates | None = None

    def row(self, name: str) -> Any:
        return next(each for each in gpu_rows.ROWS if each.name == name)

    def take_scale(self, scale: Any) -> None:
        if scale.name not in self._clips:
            self._clips[scale.name] = gpu_rig.Clip(scale)
        self.rig.scale, self.rig.clip = scale, self._clips[scale.name]

    @property
    def studio(self) -> Any:
        """A studio of `exact` whose engine also serves turbo, on the same weights."""
        if self._studio is None:
            self._studio = gpu_videos.Studio(self.row("exact"), self.rig)
            turbo = with_distilled_fused(self._studio.spec)
            fused = _OnTheSameWeights(**{each.name: getattr(turbo, each.name) for each in fields(turbo)})
            self._studio.engine.catalogue = (self._studio.spec, fused)
        return self._studio

    def release(self) -> None:
        """Give the memory of the studio's model back: the next stage makes an engine of its own."""
        if self._studio is not None:
            self._studio.close()
            self._studio = None
        self.reset()

    def expert(self, number: int = 0) -> Any:
        """An expert on the device, its hooks still on."""
        request = gpu_rows.request(self.row("exact"), self.rig.scale, take=0)
        studio = self.studio
        loaded = studio.engine.models.use(studio.spec, studio.engine.video(request).plan, Stop())
        return loaded.experts[number]

    def inputs(self, scale: Any) -> dict[str, torch.Tensor]:
        size = scale.size
        latents = (1, size.in_channels, scale.shape.latent_frames, scale.height // 8, scale.width // 8)
        text = (1, 512, 4096 if scale.is_published else 32)
        return {
            "hidden_states": torch.randn(latents, device=self.device).to(self.dtype),
            "timestep": torch.tensor([900], device=self.device),
            "encoder_hidden_states": torch.randn(text, device=self.device).to(self.dtype),
        }

    def once(self, work: Callable[[], Any]) -> float:
        self.rig.synchronize()
        began = time.perf_counter()
        work()
        self.rig.synchronize()
        return time.perf_counter() - began

    @torch.no_grad()
    def pass_s(self, expert: Any, scale: Any, repeats: int = 2) -> tuple[float, float]:
        """Seconds of a forward pass: the first one, and the least of `repeats` behind it."""
        inputs = self.inputs(scale)
        first = self.once(lambda: expert(**inputs, return_dict=False))
        return first, min(self.once(lambda: expert(**inputs, return_dict=False)) for _ in range(repeats))

    def floor(self, scale: Any, rates: Any, forwards: int) -> float:
        return gpu_rates.denoise_floor_s(scale, rates, forwards=forwards, quantized=False)

    def reset(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, float]:
        if not self.on_gpu:
            return {}
        free, total = torch.cuda.mem_get_info()
        return {
            "peak_GB": torch.cuda.max_memory_allocated() / GB,
            "reserved_GB": torch.cuda.max_memory_reserved() / GB,
            "in_use_GB": (total - free) / GB,
        }
