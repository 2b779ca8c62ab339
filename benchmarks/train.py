"""What a LoRA training teaches the demo model, and what each expert's part of it is.

    python -m benchmarks.train [--prompts 20] [--steps 120] [--folder build/train] [--output FOLDER]

A look that the demo model never saw (`training.looks`) is trained by the worker's own trainer, with each expert on its
own timesteps and once with those of the other. Then prompts of the look are made without LoRAs, with both, with that of
one expert, and with those of the swapped timesteps; and prompts without the look's word, without and with LoRAs. Frames
are judged from pixels alone. Writes a dated JSON and prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import reporting
from benchmarks.reporting import RESULTS
from training import looks, scenes, train_look
from training.judging import judge
from training.scenes import Scene
from training.train_look import Bar, by_expert
from worker.engine import Engine
from worker.request import ModelSpec
from worker.request.training import Expert
from worker.training import timesteps
from worker.training.train import Trained, TrainedExpert

# Of the prompts, none of which is a caption of the data set.
_SEED = 1_000
_OTHER: dict[Expert, Expert] = {"high": "low", "low": "high"}
_share = timesteps.share
Pasted = Sequence[tuple[str, TrainedExpert]]


def swapped(spec: ModelSpec, expert: Expert | None) -> tuple[float, float]:
    """The part of the schedule that belongs to the other expert."""
    return _share(spec, None if expert is None else _OTHER[expert])


def asked(count: int) -> list[tuple[Scene, str]]:
    """Scenes that were never trained on, with their prompts."""
    random = np.random.default_rng(_SEED)
    found: list[tuple[Scene, str]] = []
    while len(found) < count:
        scene = looks.scene(random, held_out=True)
        found.append((scene, scenes.sentence(scene, random)))
    return found


def shares(engine: Engine, prompts: Sequence[tuple[Scene, str]], loras: Pasted) -> float:
    """The share of prompts with the look's word whose videos have the look."""
    return _share_of(engine, [(f"{looks.WORD}, {text}", looks.shows) for _, text in prompts], loras)


def unharmed(engine: Engine, prompts: Sequence[tuple[Scene, str]], loras: Pasted) -> float:
    """The share of prompts without the word whose videos show the colour that was asked."""
    return _share_of(engine, [(text, _of_colour(scene)) for scene, text in prompts], loras)


def _of_colour(scene: Scene) -> Callable[[np.ndarray], bool]:
    return lambda frames: judge(frames).colour == scene.colour


def _share_of(engine: Engine, prompts: Sequence[tuple[str, Callable[[np.ndarray], bool]]], loras: Pasted) -> float:
    right = [
        is_right(train_look.video(engine, text, loras, _SEED + number))
        for number, (text, is_right) in enumerate(prompts)
    ]
    return sum(right) / len(right)


def trainings(engine: Engine, steps: int, folder: Path) -> tuple[dict[str, Trained], dict[str, float]]:
    """The LoRAs of both trainings by name, and the seconds that each took."""
    made, seconds = {}, {}
    for name, share in (("own", _share), ("swapped", swapped)):
        began = time.perf_counter()
        with mock.patch.object(timesteps, "share", share):
            made[name] = train_look.trained(engine, train_look.request(steps), folder / name, Bar())
        seconds[name] = round(time.perf_counter() - began, 1)
    return made, seconds


def run(count: int, steps: int, folder: Path) -> dict[str, Any]:
    engine, prompts = train_look.engine(), asked(count)
    made, seconds = trainings(engine, steps, folder)
    own = by_expert(made["own"])
    cases: dict[str, Pasted] = {
        "without": [],
        "both experts": own,
        "high-noise expert alone": own[:1],
        "low-noise expert alone": own[1:],
        "swapped timesteps": by_expert(made["swapped"]),
    }
    return {
        "prompts": count,
        "steps": steps,
        "training_seconds": seconds,
        "experts": {name: {side: each.report() for side, each in by_expert(found)} for name, found in made.items()},
        "look": {name: shares(engine, prompts, loras) for name, loras in cases.items()},
        "others": {name: unharmed(engine, prompts, cases[name]) for name in ("without", "both experts")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--steps", type=int, default=train_look.STEPS, help="of each expert")
    parser.add_argument("--folder", type=Path, default=Path("build/train"), help="for data, checkpoints and LoRAs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = run(options.prompts, options.steps, options.folder)
    others = result["others"]
    rows = [
        [name, f"{share:.0%}", f"{others[name]:.0%}" if name in others else ""]
        for name, share in result["look"].items()
    ]
    print(reporting.table(["LoRAs", "have the look", "other prompts right"], rows))
    print(reporting.write(options.output, "train", result, "torch", "diffusers", "peft"))


if __name__ == "__main__":
    main()
