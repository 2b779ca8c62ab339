"""What the checks look at: the settings, the device, and where everything lies, as plain values."""

from __future__ import annotations

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
from worker.doctor.device import Device, look
from worker.engine import device as planning
from worker.engine.device import Planner
from worker.request.plan import Gpu
from worker.weights import RUNPOD_CACHE

Profile = Literal["wan2.2", "demo"]
# Torch's first use of a GPU takes a second or two.
GPU_LIMIT_S = 8.0


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
        planner = Planner(torch.device("cpu"), None, None, settings)

        def find() -> None:
            nonlocal device, planner
            try:
                found = Planner.here(settings)
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
