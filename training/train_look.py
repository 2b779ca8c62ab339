"""`python -m training.train_look [--out build/demo-style]`: a LoRA for the demo model, and what it does, as a picture.

Draws a data set of `training.looks`, trains both experts by the worker's own trainer and makes videos of some prompts
before and after. The LoRAs, the data set and the picture go into the folder.
"""

from __future__ import annotations

import argparse
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from training import looks
from worker.base.files import StateFolder
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine
from worker.engine.build import build
from worker.engine.device import planner_for
from worker.jobs.samples import Unwatched
from worker.request import Lora, VideoRequest
from worker.request.catalogue import DEMO_CATALOGUE
from worker.request.parse import parse
from worker.request.training import TrainingRequest, parse_training
from worker.training import read_dataset
from worker.training.plan import choose
from worker.training.train import Trained, TrainedExpert, Watcher, train
from worker.weights.loras import LoraFile

SEED = 7
STEPS = 300
LEARNING_RATE = 4e-3
PROMPTS = (
    f"a red ball moves right {looks.PLACE}",
    f"a yellow star bounces {looks.PLACE}",
    "a red ball moves right over a checkerboard",
)


class Bar(Watcher):
    def __init__(self) -> None:
        self._bar: Any = None

    def training(self, done: int, steps: int, step_s: float | None) -> None:  # noqa: ARG002
        if self._bar is None:
            self._bar = tqdm(total=steps, desc="training")
        self._bar.update(done - self._bar.n)


def engine() -> Engine:
    return build(settings := Settings(), planner_for(settings), "demo")


def request(steps: int, **fields: object) -> TrainingRequest:
    values = {
        "training_data_url": "https://-",
        "number_of_steps": steps,
        "learning_rate": LEARNING_RATE,
        "num_frames": 1,
        # Two pictures would say too little about which step is the best.
        "validation_split": 0,
        # Guidance then makes the most of the word, since what is made without it stays as it was.
        "caption_dropout": 0,
        "seed": SEED,
        **fields,
    }
    return parse_training({"train": values}, default_job_id="look", catalogue=DEMO_CATALOGUE).train


def trained(made: Engine, wanted: TrainingRequest, folder: Path, watcher: Watcher) -> Trained:
    """The LoRAs of the new ground, in `folder`. The data set is `folder`/data, drawn where it is not there."""
    stop, data, clips = Stop(), folder / "data", folder / "clips"
    if not data.exists():
        looks.write(data, SEED)
    shutil.rmtree(clips, ignore_errors=True)
    clips.mkdir(parents=True)
    wanted = replace(
        wanted, model=next(spec for spec in made.catalogue if spec.key == "t2v" and spec.extent is not None)
    )
    dataset = read_dataset(data, clips, wanted, stop=threading.Event())
    plan = choose(wanted, made.planner.gpu)
    with made.bench(wanted.model, stop) as bench:
        return train(wanted, dataset, bench, plan, StateFolder(folder / "state"), folder, stop=stop, watcher=watcher)


def video(
    made: Engine,
    prompt: str,
    loras: Sequence[tuple[str, TrainedExpert]],
    seed: int,
    pixels: int = looks.SIZE,
    **fields: object,
) -> np.ndarray:
    """Frames of a prompt, uint8 [F, pixels, pixels, 3]. `loras` are files, each with the expert that it goes on."""
    values = {"prompt": prompt, "seed": seed, **fields}
    (wanted,) = parse(values, default_job_id="look", catalogue=made.catalogue).videos
    pasted: VideoRequest = replace(
        wanted,
        width=pixels,
        height=pixels,
        loras=tuple(Lora(each.path.name, 1.0, side, "loras") for side, each in loras),  # type: ignore[arg-type]
    )
    files = tuple(LoraFile(each.path, each.sha256, each.path.name) for _, each in loras)
    rendering = made.generate(replace(made.video(pasted), loras=files), watcher=Unwatched(), stop=Stop())
    with closing(rendering.frames()) as frames:
        return np.stack(list(frames))


def by_expert(found: Trained) -> list[tuple[str, TrainedExpert]]:
    return [(each.learned.training.expert or "both", each) for each in found.experts]


def picture(rows: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Pictures of one size in rows."""
    return Image.fromarray(np.concatenate([np.concatenate(row, 1) for row in rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/demo-style"))
    parser.add_argument("--steps", type=int, default=STEPS, help="of each expert")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    began, made = time.perf_counter(), engine()
    found = trained(made, request(options.steps), options.out, Bar())
    seconds = time.perf_counter() - began
    rows = []
    for loras in ((), by_expert(found)):
        frames = [video(made, prompt, loras, SEED) for prompt in PROMPTS]
        print(f"{'with' if loras else 'without'} the LoRAs: {[looks.shows(each) for each in frames]}")
        rows.append([each[len(each) // 2] for each in frames])
    picture(rows).save(options.out / "before-and-after.png")
    print(f"trained in {seconds:.0f} s; {options.out}/before-and-after.png: above without, below with the LoRAs")


if __name__ == "__main__":
    main()
