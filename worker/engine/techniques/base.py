"""What a technique is: a file of this folder, called with every expert that is loaded and around every run.

A technique says in the run's `parameters` what it did, and in its `warnings` where it could not do what the job asked
for. It is off where it cannot work, with a line in the log: never a silent no-op.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import WanTransformer3DModel

from worker.base.settings import Settings
from worker.engine.models.components import Components
from worker.request import ModelSpec, VideoRequest
from worker.request.plan import MemoryPlan
from worker.weights.loras import DistilledFiles

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a technique knows of the worker. `dtype` is that of the experts' arithmetic; `crew_size` how many processes
    share each step."""

    settings: Settings
    device: torch.device
    dtype: torch.dtype
    crew_size: int = 1


@dataclass(slots=True)
class Run:
    """The denoising of one video: what it asks for, what it runs on, and what techniques report of it.

    `adapters` are the LoRAs that go on the experts, those of the request first; a technique may add to them.
    `distilled` are the LoRAs of turbo, None where it needs none. `steps_done` counts the steps behind the current one;
    `steps` is how many there are, None before the first is done. `half_decode`: decode the latents in bf16.
    """

    request: VideoRequest
    spec: ModelSpec
    plan: MemoryPlan
    components: Components
    adapters: list[Adapter] = field(default_factory=list)
    distilled: DistilledFiles | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    steps_done: int = 0
    steps: int | None = None
    half_decode: bool = False

    @property
    def experts(self) -> tuple[WanTransformer3DModel, ...]:
        """Both, or the only one. The weights of the second may still be on their way: hooks are put on all the same."""
        return self.components.modules

    def refuse(self, field_name: str, reason: str) -> None:
        """Say that what the job asked for in a field is off, and why."""
        logger.warning("%s is off: %s", field_name, reason)
        self.warnings.append(f"{self.request.at(field_name)}: off, {reason}")
        self.parameters[field_name] = "off"


class Technique:
    """Does nothing; a technique overrides what it needs. One is made for each engine, which calls it under its lock.

    `calibrating`: a technique that goes by what was measured on the model measures it in this video.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.calibrating = False

    def prepare(self, expert: WanTransformer3DModel, plan: MemoryPlan) -> None:
        """Called once for each expert that was loaded to be arranged as `plan` says, before it is."""

    @contextmanager
    def applied(self, run: Run) -> Iterator[None]:  # noqa: ARG002 - for those that override it
        """Wrapped around the steps of one video, also of those that end by an exception."""
        yield

    def fall_back(self) -> str | None:
        """The latents came out as NaN or blank: switch off, for the rest of the process, what may be the reason.

        Returns what was switched off, as a line for `warnings`; None where there is nothing.
        """
        return None

    def take_back(self) -> None:
        """The latents were no picture without it either: what was switched off is used again."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A verified safetensors file and what to do with it. `path` is its `source` in the request, for errors."""

    file: Path
    name: str
    scale: float
    expert: Literal["high", "low", "both"]
    path: str
