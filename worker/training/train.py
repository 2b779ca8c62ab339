"""A whole training on the GPU: the data set is encoded, then the experts learn one after the other.

    with engine.bench(request.model, stop) as bench:
        trained = train(request, dataset, bench, plan, state, folder, stop=stop)

One expert is in memory at a time; the other is not loaded. Checkpoints on STATE_DIR are named by what is trained on
what, not by the job: a job that is sent again goes on where the last one ended, under another id too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from worker.base import files
from worker.base.errors import OutOfMemory
from worker.base.files import StateFolder
from worker.base.stop import Stop
from worker.engine.bench import Bench
from worker.request.training import TrainingRequest
from worker.training import encode, expert
from worker.training import files as lora_files
from worker.training.checkpoint import Checkpoint
from worker.training.dataset import Dataset
from worker.training.encode import Encoded
from worker.training.expert import Learned
from worker.training.plan import TrainingPlan, lower

logger = logging.getLogger(__name__)
# What has no part in the weights that come of a training.
_NOT_LEARNED = ("training_data_url", "sample_prompts", "dry_run", "warnings", "auto_scale_input", "validation_split")


class Watcher:
    """Receives how far a training is. Does nothing; called from the GPU's thread, and must return at once."""

    def preparing(self, fraction: float) -> None: ...

    def training(self, done: int, steps: int, step_s: float | None) -> None:
        """`done` of the `steps` of all experts; `step_s`: seconds that one takes, None before the first."""


@dataclass(frozen=True, slots=True)
class TrainedExpert:
    """One LoRA file and what it has learned."""

    learned: Learned
    path: Path
    sha256: str

    def report(self) -> dict[str, Any]:
        """Its part of the result. Losses are None where nothing was held out or measured."""
        losses, progress = self.learned.progress.losses, self.learned.progress
        return {
            "loss_before": losses.get(0),
            "loss_after": losses.get(self.learned.best_step),
            "best_step": self.learned.best_step,
            "steps": progress.step,
            "losses": [{"step": step, "loss": loss} for step, loss in sorted(losses.items())],
            "sha256": self.sha256,
            "size_bytes": self.path.stat().st_size,
        }


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training made, in the order of its experts; of one that was stopped, what was best so far.

    `seconds`: encode and train.
    """

    experts: tuple[TrainedExpert, ...]
    seconds: Mapping[str, float]


def train(
    request: TrainingRequest,
    dataset: Dataset,
    bench: Bench,
    plan: TrainingPlan,
    state: StateFolder,
    folder: Path,
    *,
    stop: Stop,
    watcher: Watcher,
) -> Trained:
    """Train every expert and write its LoRA into `folder`. Blocks; runs in the GPU's thread.

    A stop ends it within a step. Raises its reason where nothing was learned before, ModelUnavailable, and OutOfMemory.
    """
    began = time.perf_counter()
    encode_s = 0.0

    def attempt(arranged: TrainingPlan) -> list[Learned] | None:
        """None where memory ran out."""
        nonlocal encode_s
        try:
            tiled = arranged.vae_tiling
            data = encode.encode(dataset, request, bench, state, tiled=tiled, on_progress=watcher.preparing)
            encode_s = time.perf_counter() - began
            return _learned(request, data, bench, arranged, state, stop, watcher)
        except torch.OutOfMemoryError:
            return None

    learned, below = attempt(plan), lower(plan)
    if learned is None and below is not None:
        # Here, outside of any except block, the traceback no longer holds the tensors of the first try.
        logger.warning("out of memory as %s: trying again as %s", plan, below)
        bench.release()
        learned = attempt(below)
    if learned is None:
        raise OutOfMemory(
            "the GPU's memory does not hold this training: send fewer frames or a smaller resolution",
            path="train.num_frames",
        )
    if not learned:
        stop.check()
    trained = []
    for each in learned:
        path = folder / f"{each.training.expert or 'lora'}.safetensors"
        lora_files.save(each, request, path)
        trained.append(TrainedExpert(each, path, files.sha256_of(path)))
    return Trained(tuple(trained), {"encode": encode_s, "train": time.perf_counter() - began - encode_s})


def _learned(
    request: TrainingRequest,
    data: Encoded,
    bench: Bench,
    plan: TrainingPlan,
    state: StateFolder,
    stop: Stop,
    watcher: Watcher,
) -> list[Learned]:
    learned: list[Learned] = []
    steps, before = sum(each.steps for each in request.experts), 0
    for training in request.experts:
        settings = _settings(request, data, training.expert)
        name = (
            f"{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]}-{training.expert or 'lora'}.checkpoint"
        )
        found = expert.train(
            training,
            request,
            data,
            bench,
            plan,
            Checkpoint(state, name, settings),
            stop=stop,
            on_step=_counted(watcher, before, steps),
        )
        bench.release()
        if found is not None:
            learned.append(found)
        if stop.requested:
            break
        before += training.steps
    return learned


def _counted(watcher: Watcher, before: int, steps: int) -> Callable[[int], None]:
    """Reports the steps of one expert among those of all."""
    first: list[tuple[float, int]] = []

    def on_step(done: int) -> None:
        now = time.monotonic()
        if not first:
            first.append((now, done))
        began, at = first[0]
        watcher.training(before + done, steps, (now - began) / (done - at) if done > at else None)

    return on_step


def _settings(request: TrainingRequest, data: Encoded, expert: str | None) -> dict[str, Any]:
    """Everything that an expert's weights depend on, as JSON."""
    values = {name: value for name, value in asdict(request).items() if name not in _NOT_LEARNED}
    own = [asdict(each) for each in request.experts if each.expert == expert]
    return {**values, "experts": own, "model": [request.model.version, request.model.key], "data": data.digest}
