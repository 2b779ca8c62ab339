"""The device of this process: which it is, what may be planned for it, and its peak of memory in use."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import torch

from worker.base.settings import MAX_GPUS, Settings
from worker.request.plan import Gpu, Planner

logger = logging.getLogger(__name__)

# What the process, the pipes and the page cache need beside the weights that wait in host memory.
_HOST_SHARE = 0.85
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def detect() -> torch.device:
    """The first CUDA device, or the CPU where there is none."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def planner_for(settings: Settings, device: torch.device | None = None) -> Planner:
    """The planner for one of the worker's devices, by default the first; the devices share the host's memory."""
    device = detect() if device is None else device
    if device.type != "cuda":
        return Planner(None, settings)
    found = torch.cuda.get_device_properties(device)
    gpu = Gpu(found.name, found.total_memory, (found.major, found.minor))
    share = int(host_memory_bytes() * _HOST_SHARE)
    return Planner(gpu, settings, share // crew_size(settings, torch.cuda.device_count()))


def crew_size(settings: Settings, gpus_here: int | None) -> int:
    """How many processes share each video: what GPUS asks for, at most one a GPU.

    `gpus_here` is None on the CPU, where GPUS counts processes; that is only good for tests.
    """
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
    """Count the peak of GPU memory from here."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int | None:
    """The most bytes in tensors since `reset_peak`, None on a CPU. Excludes driver, library and cache memory."""
    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else None
