"""What a LoRA training teaches the demo model, and what each expert's part of it is.

    python -m benchmarks.train [--prompts 20] [--own-size 4] [--steps 300] [--folder build/train] [--output FOLDER]

A ground that the demo model never saw (`training.looks`) is trained by the worker's own trainer, with each expert on
its own timesteps and once with those of the other. Then prompts of the ground are made without LoRAs, with both, with
that of one expert, and with those of the swapped timesteps; and prompts of known grounds, without and with LoRAs.
Frames are judged from pixels alone. The videos are small and short, so that it ends in minutes; the first `--own-size`
prompts are made at the demo's own size too. Writes a dated JSON and prints a table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from worker.training.train import TrainedExpert

# Of the prompts, none of which is a caption of the data set.
_SEED = 1_000
_OTHER: dict[Expert, Expert] = {"high": "low", "low": "high"}
_share = timesteps.share
Pasted = Sequence[tuple[str, TrainedExpert]]
Asked = Sequence[tuple[Scene, str]]


@dataclass(frozen=True, slots=True)
class Size:
    """Of the videos that are judged: pixels a side, frames, and steps of their sampling."""

    side: int
    num_frames: int
    num_inference_steps: int


SMALL, OWN = Size(128, 13, 5), Size(256, 17, 12)


def swapped(spec: ModelSpec, expert: Expert | None) -> tuple[float, float]:
    """The part of the schedule that belongs to the other expert."""
    return _share(spec, None if expert is None else _OTHER[expert])


def asked(count: int, place: str | None) -> Asked:
    """Scenes that were never trained on, with their prompts: over `place`, or over the ground of the scene."""
    random = np.random.default_rng(_SEED)
    drawn = [looks.scene(random, held_out=True) for _ in range(count)]
    return [(scene, scenes.sentence(scene, random, place=place)) for scene in drawn]


@dataclass(frozen=True, slots=True)
class Shown:
    """Shares of a case's prompts whose videos show the new ground, and the colour that was asked.

    `green`: the mean of `looks.green`, which grows with what was learned where all or none are judged right.
    """

    moss: float
    colour: float
    green: float


def shown(engine: Engine, prompts: Asked, loras: Pasted, size: Size = SMALL) -> Shown:
    fields = asdict(size)
    side = fields.pop("side")
    videos = [
        train_look.video(engine, text, loras, _SEED + number, side, **fields)
        for number, (_, text) in enumerate(prompts)
    ]
    colours = [judge(frames).colour == scene.colour for frames, (scene, _) in zip(videos, prompts, strict=True)]
    return Shown(
        float(np.mean([looks.shows(frames) for frames in videos])),
        float(np.mean(colours)),
        round(float(np.mean([looks.green(frames) for frames in videos])), 3),
    )


def trained(engine: Engine, steps: int, folder: Path) -> Pasted:
    """The LoRAs of both experts. What is in `folder` already is not made again."""
    return by_expert(train_look.trained(engine, train_look.request(steps), folder, Bar()))


def run(count: int, own_size: int, steps: int, folder: Path) -> dict[str, Any]:
    engine, new, known = train_look.engine(), asked(count, looks.PLACE), asked(count, None)
    found: list[dict[str, Any]] = []

    def case(ground: str, prompts: Asked, loras: str, pasted: Pasted, size: Size = SMALL) -> None:
        judged = shown(engine, prompts, pasted, size)
        found.append({"ground": ground, "loras": loras, "prompts": len(prompts), **asdict(size), **asdict(judged)})
        print(found[-1], flush=True)

    began, began_cpu = time.perf_counter(), time.process_time()
    own = trained(engine, steps, folder / "own")
    seconds = {"wall": round(time.perf_counter() - began, 1), "cpu": round(time.process_time() - began_cpu, 1)}
    print(seconds, flush=True)
    case("new", new, "both experts", own)
    case("known", known, "both experts", own)
    case("new", new, "without", [])
    case("known", known, "without", [])
    case("new", new, "high-noise expert alone", own[:1])
    case("new", new, "low-noise expert alone", own[1:])
    with mock.patch.object(timesteps, "share", swapped):
        other = trained(engine, steps, folder / "swapped")
    case("new", new, "swapped timesteps", other)
    if own_size > 0:
        case("new", new[:own_size], "both experts", own, OWN)
        case("known", known[:own_size], "both experts", own, OWN)
    return {
        "steps": steps,
        "training_s": seconds,
        "sha256": {"own": [each.sha256 for _, each in own], "swapped": [each.sha256 for _, each in other]},
        "cases": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--own-size", type=int, default=4, help="prompts that are made at the demo's own size too")
    parser.add_argument("--steps", type=int, default=train_look.STEPS, help="of each expert")
    parser.add_argument("--folder", type=Path, default=Path("build/train"), help="for data, checkpoints and LoRAs")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    result = run(options.prompts, options.own_size, options.steps, options.folder)
    rows = [
        [
            *(each["ground"], each["loras"], str(each["side"]), str(each["prompts"])),
            *(f"{each['moss']:.0%}", f"{each['colour']:.0%}", f"{each['green']:.3f}"),
        ]
        for each in result["cases"]
    ]
    heads = ["Ground of the prompts", "LoRAs", "Pixels a side", "Prompts", "moss", "colour right", "green"]
    print(reporting.table(heads, rows, words=2))
    print(reporting.write(options.output, "train", result, "torch", "diffusers", "peft"))


if __name__ == "__main__":
    main()
