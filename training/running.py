"""What every part of the training shares: steps with a bar, a log, checkpoints to go on from, and the loss curve.

Learning rate and optimizer step are those of the worker's own trainer, `worker.training.loop`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm


def in_bf16(device: torch.device) -> torch.autocast:
    """bfloat16, where `device` multiplies it: a CPU that does not is twice as fast in float32."""
    multiplies = device.type != "cpu" or torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=multiplies)


class Average:
    """An exponential moving average of a model's weights."""

    def __init__(self, model: torch.nn.Module, decay: float = 0.998) -> None:
        self._decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._count = 0

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        for name, value in model.state_dict().items():
            if name in self.weights:
                self.weights[name].lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, "count": self._count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.weights, self._count = dict(state["weights"]), int(state["count"])


@dataclass
class Run:
    """One part of the training in `folder`: its checkpoint, its log of JSON lines and its curve."""

    name: str
    folder: Path
    seed: int = 22
    every_s: float = 60.0
    # Where time is short the clock ends the part: the schedule then follows whichever is further along.
    minutes: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _began: float = field(default_factory=time.perf_counter)
    _figures: dict[str, float] = field(default_factory=dict)
    _steps: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.pt"

    @property
    def along(self) -> float:
        """The share of `minutes` that has passed, 0 where there is no limit."""
        return 0.0 if self.minutes is None else (time.perf_counter() - self._began) / (60 * self.minutes)

    @property
    def last(self) -> dict[str, float]:
        """The steps of this run and its last figures, smoothed."""
        return {"steps": self._steps, "seconds": round(time.perf_counter() - self._began, 2), **self._figures}

    def steps(self, count: int, parts: Mapping[str, Any]) -> Iterator[int]:
        """The numbers of the steps still to do; `parts` are kept in the checkpoint and read from it at the start."""
        first = self._resume(parts)
        saved = time.perf_counter()
        with tqdm(range(first, count), initial=first, total=count, desc=self.name, mininterval=5) as bar:
            for step in bar:
                yield step
                self._steps += 1
                bar.set_postfix(self._figures, refresh=False)
                if time.perf_counter() - saved > self.every_s:
                    self._save(step + 1, parts)
                    saved = time.perf_counter()
                if self.along >= 1:
                    break
        self._save(count, parts)

    def report(self, step: int, **figures: float) -> None:
        """Keep a smoothed value of each figure; every tenth step goes into the log."""
        for name, value in figures.items():
            before = self._figures.get(name, value)
            self._figures[name] = 0.95 * before + 0.05 * value
        if step % 10 == 0:
            with (self.folder / f"{self.name}.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in self._figures.items()}}) + "\n")

    def _resume(self, parts: Mapping[str, Any]) -> int:
        if not self.checkpoint.exists():
            return 0
        kept = torch.load(self.checkpoint, weights_only=False, map_location=self.device)
        for name, part in parts.items():
            part.load_state_dict(kept[name])
        return int(kept["step"])

    def _save(self, step: int, parts: Mapping[str, Any]) -> None:
        new = self.checkpoint.with_suffix(".new")
        torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, new)
        new.replace(self.checkpoint)
