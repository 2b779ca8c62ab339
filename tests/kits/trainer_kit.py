"""A training of the random demo model at 64 x 64: seconds for both experts.

`python -m tests.kits.trainer_kit FOLDER SECONDS ...` runs it twice in processes of its own: whole in FOLDER/whole;
in FOLDER/killed each process but the last is killed so many seconds after a checkpoint of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.kits.engine_kit import demo_source
from tests.kits.lora_kit import spec_of
from tests.kits.training_kit import training_request
from worker.base.files import StateFolder
from worker.base.stop import Stop
from worker.engine.bench import Bench
from worker.request.training import TrainingRequest
from worker.training import expert
from worker.training.dataset import Clip, Dataset
from worker.training.plan import TrainingPlan
from worker.training.train import Trained, Watcher, train

PLAN = TrainingPlan("fp32", recomputed=False)


def request(key: str = "t2v", **fields: Any) -> TrainingRequest:
    values = {"number_of_steps": 12, "learning_rate": 3e-3, "rank": 4, "checkpoint_every": 4, **fields}
    name = {"t2v": "a14b-t2v", "i2v": "a14b-i2v", "5b": "5b"}[key]
    made = training_request(height=64, num_frames=5, model=name, **{**values, "checkpoint_every": 10})
    return replace(made, model=spec_of(key), checkpoint_every=values["checkpoint_every"])


def dataset(folder: Path, count: int = 5, held_out: int = 1) -> Dataset:
    """Coloured noise: `count` clips, of which the last are held out."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(count):
        frames = np.random.default_rng(number).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
        file = folder / f"{number}.npy"
        np.save(file, frames.repeat(8, 1).repeat(8, 2))
        clips.append(Clip(f"{number}.mp4", f"squares, number {number}", file, num_frames=5))
    trained = count - held_out
    return Dataset(tuple(clips[:trained]), tuple(clips[trained:]), ())


def bench(wanted: TrainingRequest, stop: Stop | None = None) -> Bench:
    device = torch.device("cpu")
    return Bench(demo_source(), wanted.model, device, torch.float32, Stop() if stop is None else stop)


def run(
    wanted: TrainingRequest,
    state: Path,
    out: Path,
    *,
    held_out: int = 1,
    plan: TrainingPlan = PLAN,
    stop: Stop | None = None,
    watcher: Watcher | None = None,
) -> Trained:
    stop = Stop() if stop is None else stop
    out.mkdir(parents=True, exist_ok=True)
    return train(
        *(wanted, dataset(out / "clips", held_out=held_out), bench(wanted, stop), plan, StateFolder(state), out),
        stop=stop,
        watcher=Watcher() if watcher is None else watcher,
    )


def main() -> None:
    torch.set_num_threads(1)
    expert.SAVE_EVERY_S = 0.0
    folder = Path(sys.argv[1])
    _run(folder / "whole", None)
    for moment in (*map(float, sys.argv[2:]), None):
        _run(folder / "killed", moment)


def _run(folder: Path, moment: float | None) -> None:
    known, child = _checkpoints(folder), os.fork()  # torch has started no thread yet
    if child == 0:
        run(request(number_of_steps=30), folder / "state", folder)
        os._exit(0)
    if moment is not None:
        while _checkpoints(folder) == known and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    ended = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(ended) == (0 if moment is None else -signal.SIGKILL), (moment, ended)


def _checkpoints(folder: Path) -> set[tuple[str, int]]:
    return {(file.name, file.stat().st_mtime_ns) for file in folder.glob("state/training/*.checkpoint")}


if __name__ == "__main__":
    main()
