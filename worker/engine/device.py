"""The device that is here: what torch finds, its memory plan by `worker.request.plan`, its peak of memory in use."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from worker.base.settings import MAX_GPUS, Settings
from worker.request import ModelSpec
from worker.request import plan as memory
from worker.request.plan import Gpu, MemoryPlan, Shape

logger = logging.getLogger(__name__)

# What the process, the pipes and the page cache need beside the weights that wait in host memory.
_HOST_SHARE = 0.85
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans for one device. `gpu` is None on a CPU; `host_bytes`, what waiting weights may take, None for no limit."""

    device: torch.device
    gpu: Gpu | None
    host_bytes: int | None
    settings: Settings

    @classmethod
    def here(cls, settings: Settings) -> Planner:
        """For the first CUDA device, or the CPU where there is none."""
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        return cls.on(device, settings)

    @classmethod
    def on(cls, device: torch.device, settings: Settings) -> Planner:
        """For a device that is one of the worker's; they have the host's memory in common."""
        if device.type != "cuda":
            return cls(device, None, None, settings)
        found = torch.cuda.get_device_properties(device)
        gpu = Gpu(found.name, found.total_memory, (found.major, found.minor))
        share = int(host_memory_bytes() * _HOST_SHARE)
        return cls(device, gpu, share // crew_size(settings, torch.cuda.device_count()), settings)

    @property
    def crew_size(self) -> int:
        """How many processes share each video. On the CPU GPUS counts processes: only good for tests."""
        here = torch.cuda.device_count() if self.device.type == "cuda" else None
        return crew_size(self.settings, here)

    def plan(self, spec: ModelSpec, shape: Shape, *, path: str | None = None) -> MemoryPlan:
        """Raises InvalidRequest or Unsupported where the shape does not fit, and says what would."""
        return memory.plan(self.gpu, spec, self.settings, shape, host_limit_bytes=self.host_bytes, path=path)

    def standard(self, spec: ModelSpec) -> MemoryPlan:
        """The plan for 832x480x81, or for the largest that fits where that does not."""
        limit = self.host_bytes
        shape = memory.largest(self.gpu, spec, self.settings, host_limit_bytes=limit)
        if shape is None or shape.pixels * shape.num_frames > memory.STANDARD.pixels * memory.STANDARD.num_frames:
            shape = memory.STANDARD
        return self.plan(spec, shape)

    def lower(self, plan: MemoryPlan, spec: ModelSpec, shape: Shape) -> MemoryPlan | None:
        """The next plan down after out of memory; None where there is none."""
        return memory.lower(plan, self.gpu, spec, self.settings, shape, host_limit_bytes=self.host_bytes)


def crew_size(settings: Settings, gpus_here: int | None) -> int:
    """What GPUS asks for, and not more than there is; `gpus_here` is None on the CPU."""
    if gpus_here is None:
        return 1 if settings.gpus == "all" else settings.gpus
    if settings.gpus == "all":
        return max(1, min(gpus_here, MAX_GPUS))
    if settings.gpus > gpus_here:
        logger.warning("GPUS=%d, but %d are here: using these", settings.gpus, gpus_here)
    return max(1, min(settings.gpus, gpus_here))


def host_memory_bytes() -> int:
    """Memory of the machine, or of the container where that is less."""
    total: int = psutil.virtual_memory().total
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def reset_peak() -> None:
    """Count the peak of GPU memory anew from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """The most bytes in tensors since `reset`. What the driver, its libraries and the cache take comes on top."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
