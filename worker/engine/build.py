"""Builds the engine of a profile, in the worker's own process and in its followers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

import torch

from worker.base import log
from worker.base.settings import Settings
from worker.engine.device import planner_for
from worker.engine.distributed import ALONE, Crew
from worker.engine.engine import Engine
from worker.engine.models.components import quiet_libraries
from worker.request.plan import Planner
from worker.weights.sources import demo, volume

Profile = Literal["wan2.2", "demo"]
# The trained demo experts have four attention heads, which so many processes share evenly.
_SHARED_BY = (1, 2, 4)


def build(
    settings: Settings, planner: Planner, profile: Profile, device: torch.device | None = None, crew: Crew = ALONE
) -> Engine:
    """The engine of `profile`. Silences the libraries of this process; raises what its source of models raises."""
    quiet_libraries()
    if profile == "wan2.2":
        return Engine(volume.VolumeSource(settings), volume.catalogue(settings), planner, device, crew)
    source, catalogue = demo.DemoSource(heads=crew.size), demo.catalogue(trained=crew.size in _SHARED_BY)
    if crew.size > 1:  # once the crew has met, transformers writes files in the leader only
        for spec in catalogue:
            source.folder(spec, threading.Event(), "bf16")
    return Engine(source, catalogue, planner, device, crew)


def following(crew: Crew, device: torch.device, settings: Settings, profile: Profile) -> Callable[[object], None]:
    """The function with which a follower carries out an order: the same engine, on its own GPU. For a new process."""
    log.configure(level=settings.log_level, layout=settings.log_format, secrets=settings.secret_values())
    return build(settings, planner_for(settings, device), profile, device, crew).follow
