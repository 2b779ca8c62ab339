"""Where the training of one expert stands, as one file: written whole or not at all, read without running code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worker.base import files
from worker.base.files import StateFolder

FOLDER = "training"


@dataclass(slots=True)
class Progress:
    """How far an expert is, and its best so far.

    `losses` are the held-out losses by step, none where nothing is held out. `best_step` is None before the first look.
    """

    step: int = 0
    losses: dict[int, float] = field(default_factory=dict)
    best_step: int | None = None

    @property
    def best_loss(self) -> float | None:
        return None if self.best_step is None else self.losses.get(self.best_step)


@dataclass(frozen=True, slots=True)
class State:
    """`tensors` by name: fp32 factors, the optimizer's moments, the best factors."""

    progress: Progress
    tensors: dict[str, torch.Tensor]


def sweep(state: StateFolder) -> None:
    """Remove what has expired of all trainings. Bounded in time."""
    try:
        files.sweep(state.folder(FOLDER), now=state.now())
    except OSError as failure:
        state.cannot(failure)


class Checkpoint:
    """The file `name` on STATE_DIR. An unwritable STATE_DIR costs the protection and nothing else."""

    def __init__(self, state: StateFolder, name: str, settings: Mapping[str, Any]) -> None:
        self._state = state
        self._name = name
        self._settings = json.dumps(settings, sort_keys=True)

    def load(self) -> State | None:
        """What was saved with the same settings; None where nothing was, or where it cannot be read."""
        try:
            path = self._path()
            if not path.exists():
                return None
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except OSError as failure:
            self._state.cannot(failure)
            return None
        except SafetensorError:
            files.set_aside(path)
            return None
        if header.get("settings") != self._settings:
            return None
        known = json.loads(header["progress"])
        losses = {int(step): loss for step, loss in known["losses"].items()}
        return State(Progress(known["step"], losses, known["best_step"]), tensors)

    def save(self, state: State) -> None:
        header = {"settings": self._settings, "progress": json.dumps(asdict(state.progress))}
        try:
            with files.replacing(self._path()) as temporary:
                save_file(state.tensors, temporary, header)
        except OSError as failure:
            self._state.cannot(failure)

    def _path(self) -> Path:
        return self._state.folder(FOLDER) / self._name
