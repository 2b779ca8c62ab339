"""What the checks look at: the settings, the device and the folders, as plain values."""

from __future__ import annotations

import ctypes
import re
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psutil
import torch

from worker.base import folders, settings
from worker.base.errors import SettingsError
from worker.base.settings import Settings
from worker.engine import device as planning
from worker.request.plan import Gpu, Planner
from worker.weights import RUNPOD_CACHE

Profile = Literal["wan2.2", "demo"]
# Torch's first use of a GPU takes a second or two.
GPU_LIMIT_S = 8.0
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


@dataclass(frozen=True, slots=True)
class Host:
    """Main memory of the machine, or of the container where that is less."""

    total_bytes: int
    available_bytes: int

    @classmethod
    def here(cls) -> Host:
        total = planning.host_memory_bytes()
        return cls(total, min(total, psutil.virtual_memory().available))


@dataclass(frozen=True, slots=True)
class Deployment:
    """One worker's surroundings.

    `problems` are the settings' unreadable values; where there are any, `settings` holds the readable ones. `hub` is
    the address of the model hub, None for the hub client's own; `ffmpeg` the program, None for imageio-ffmpeg's own.
    """

    settings: Settings
    problems: tuple[str, ...]
    planner: Planner
    device: Device
    host: Host
    model_cache: Path
    state: Path
    volumes: tuple[Path, ...] = (folders.POD_VOLUME, folders.SERVERLESS_VOLUME)
    runpod_cache: Path = RUNPOD_CACHE
    temporary: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    hub: str | None = None
    ffmpeg: Path | None = None

    @classmethod
    def here(
        cls, settings: Settings, planner: Planner, *, problems: tuple[str, ...] = (), device: Device | None = None
    ) -> Deployment:
        """The surroundings of this process; `device` stands for what is found without trying the GPU."""
        return cls(
            settings=settings,
            problems=problems,
            planner=planner,
            device=look(planner.gpu, compute=False) if device is None else device,
            host=Host.here(),
            model_cache=folders.model_cache_dir(settings),
            state=folders.state_dir(settings),
        )

    @classmethod
    def tried(cls, settings: Settings, problems: tuple[str, ...], *, limit_s: float = GPU_LIMIT_S) -> Deployment:
        """The same, with the GPU tried. Where the driver hangs or breaks, `device` says so and there is no GPU."""
        device = Device(None, silent_s=limit_s)
        planner = Planner(None, settings)

        def find() -> None:
            nonlocal device, planner
            try:
                found = planning.planner_for(settings)
                device, planner = look(found.gpu, compute=True), found
            except RuntimeError as failure:
                device = Device(None, failure=type(failure).__name__)

        thread = threading.Thread(target=find, name="find the GPU", daemon=True)
        thread.start()
        thread.join(limit_s)
        return cls.here(settings, planner, problems=problems, device=device)

    @property
    def profile(self) -> Profile:
        return profile_of(self.settings, self.planner.gpu)

    @property
    def storage_is_unreadable(self) -> bool:
        """The settings of the storage are among the problems."""
        return any("DIGITAL_OCEAN_" in problem for problem in self.problems)


def profile_of(configured: Settings, gpu: Gpu | None) -> Profile:
    """MODEL_PROFILE; unset, the demo model serves in local mode on a machine without a GPU, and nowhere else."""
    if configured.model_profile is not None:
        return configured.model_profile
    return "demo" if not configured.on_platform and gpu is None else "wan2.2"


def readable_settings() -> tuple[Settings, tuple[str, ...]]:
    """The settings, and the problems of those that cannot be read: these have their defaults."""
    try:
        return settings.load(), ()
    except SettingsError as failure:
        named = {problem.partition(":")[0] for problem in failure.problems}
        defaults = {
            name: field.default
            for name, field in Settings.model_fields.items()
            if named & {name, *settings.variables_of(name)}
        }
        return Settings(**defaults), failure.problems


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
    """Asks the driver itself, which works where torch does not: without a device, or when it is too old."""
    try:
        release = re.search(r"\s(\d{3,}\.[\d.]+\d)\s", kernel_module.read_text())
    except OSError:
        release = None
    try:
        version = ctypes.c_int(0)
        known = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version)) == 0
    except (OSError, AttributeError):
        known = False
    # CUDA counts 12.4 as 12040.
    cuda = (version.value // 1000, version.value % 1000 // 10) if known else None
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
