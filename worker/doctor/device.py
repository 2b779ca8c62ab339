"""The GPU, its driver and what torch was built for, as plain values: `gpu` judges them."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from worker.request.plan import Gpu

_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Driver:
    """`cuda` is the newest CUDA that the driver serves, `release` its own number; None where there is no driver."""

    cuda: tuple[int, int] | None = None
    release: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """What is here for torch to compute on.

    `gpu` is the first CUDA device, of `count`; `torch_cuda` the CUDA that torch was built for, None for a CPU build;
    `architectures` what it holds kernels for, such as `sm_90`. `free_bytes` and `failure` (what a small computation on
    the GPU ended with) are known where it was tried. `silent_s`: the device did not answer within that time, and
    nothing is known of it.
    """

    gpu: Gpu | None
    count: int = 0
    torch_cuda: str | None = None
    architectures: tuple[str, ...] = ()
    driver: Driver = Driver()
    free_bytes: int | None = None
    failure: str | None = None
    silent_s: float | None = None


def look(gpu: Gpu | None, *, compute: bool) -> Device:
    """The device whose `gpu` the planner found. `compute` also uses it, which takes a second and GPU memory."""
    free_bytes, failure = _try() if compute and gpu is not None else (None, None)
    return Device(
        gpu=gpu,
        count=torch.cuda.device_count() if gpu is not None else 0,
        torch_cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        driver=driver(),
        free_bytes=free_bytes,
        failure=failure,
    )


def driver(library: str = "libcuda.so.1", kernel_module: Path = _KERNEL_MODULE) -> Driver:
    """Asks the driver itself, which answers where torch does not: without a device, or when it is too old."""
    try:
        release = re.search(r"\s(\d{3,}\.[\d.]+\d)\s", kernel_module.read_text())
    except OSError:
        release = None
    try:
        version = ctypes.c_int(0)
        answered = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version)) == 0
    except (OSError, AttributeError):
        answered = False
    # CUDA counts 12.4 as 12040.
    cuda = (version.value // 1000, version.value % 1000 // 10) if answered else None
    return Driver(cuda, release[1] if release else None)


def _try() -> tuple[int | None, str | None]:
    """Free bytes, and what is wrong with the result of a small product in bf16."""
    free_bytes = None
    try:
        free_bytes, _ = torch.cuda.mem_get_info(0)
        ones = torch.ones(256, 256, dtype=torch.bfloat16, device="cuda:0")
        result = float((ones @ ones).float().mean())
    except torch.OutOfMemoryError:
        return free_bytes, None  # a worker beside the doctor may hold all of it
    except (RuntimeError, AssertionError) as failure:
        return free_bytes, type(failure).__name__
    return free_bytes, None if result == 256 else f"256 came out as {result:g}"
