"""How well a preview foretells the video, and what it costs.

    python -m benchmarks.previews [--prompts 40] [--steps 50] [--sheet FILE] [--output FOLDER]

Held-out scenes go through the worker's own engine on the trained demo model, with a preview after 35% of the steps. The
judges of `training.judging` read colour and place of the object from the preview's frames and from the video's, which
must agree. A step is timed in the engine's thread, and so is what a preview takes of it; the frames are made once more
without previews, and must have the same bits.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import reporting
from benchmarks.quality_cases import GUIDANCE, NUM_FRAMES, SIZE, asked_scenes
from benchmarks.reporting import RESULTS
from training import scenes as writing
from training.judging import judge, place
from training.scenes import Scene
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine, Preview
from worker.engine.device import planner_for
from worker.request import VideoRequest
from worker.request.parse import parse
from worker.request.values import Previews
from worker.weights.sources import demo

AT = 0.35
NEAR = 0.15


class Watcher:
    """Keeps the preview, when each step ended, and how long the engine's thread took to queue the preview."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.preview_s: list[float] = []
        self.looks: list[Preview] = []

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None:  # noqa: ARG002
        self.steps.append(time.perf_counter())

    def preview(self, preview: Preview) -> None:
        self.preview_s.append(time.perf_counter() - self.steps[-1])
        self.looks.append(preview)


@dataclass(frozen=True, slots=True)
class Pair:
    """The frames of a preview and of its video, uint8 [F, H, W, 3] of one size, and seconds in the engine's thread."""

    preview: np.ndarray
    video: np.ndarray
    step_s: float
    preview_s: float

    @property
    def same_colour(self) -> bool:
        return judge(self.preview).colour == judge(self.video).colour

    @property
    def same_place(self) -> bool:
        one, other = place(self.preview), place(self.video)
        return one is not None and other is not None and float(np.hypot(*np.subtract(one, other))) < NEAR


def request_of(scene: Scene, seed: int, steps: int) -> VideoRequest:
    fields = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "num_frames": NUM_FRAMES}
    prompt = writing.sentence(scene, np.random.default_rng(seed))
    payload = {"prompt": prompt, "seed": seed, "height": SIZE, "width": SIZE, **fields}
    return replace(parse(payload, default_job_id="previews").videos[0], preview=Previews("strip", (AT,)))


def made(engine: Engine, request: VideoRequest) -> tuple[np.ndarray, Watcher]:
    watcher = Watcher()
    video = replace(engine.video(request), prompt=request.prompt)
    rendering = engine.generate(video, watcher=watcher, stop=Stop())
    return np.stack(list(rendering.frames())), watcher


def pair(engine: Engine, request: VideoRequest) -> Pair:
    frames, watcher = made(engine, request)
    (look,) = watcher.looks
    small = look.colours.frames(look.latents)
    enlarged = [Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for each in small]
    step_s = float(np.median(np.diff(watcher.steps)))
    return Pair(np.stack([np.asarray(each) for each in enlarged]), frames, step_s, watcher.preview_s[0])


def figures(pairs: Sequence[Pair]) -> dict[str, float]:
    step_s, preview_s = (float(np.median([getattr(each, name) for each in pairs])) for name in ("step_s", "preview_s"))
    return {
        "prompts": len(pairs),
        "same_colour": float(np.mean([each.same_colour for each in pairs])),
        "same_place": float(np.mean([each.same_place for each in pairs])),
        "step_ms": step_s * 1000,
        "preview_ms": preview_s * 1000,
        "preview_share_of_step": preview_s / step_s,
    }


def sheet(shown: Pair, target: Path) -> None:
    """The frames of a preview above those of its video."""
    columns = len(shown.preview)
    video = shown.video[np.linspace(0, len(shown.video) - 1, columns).round().astype(int)]
    canvas = np.concatenate([np.concatenate(list(row), 1) for row in (shown.preview, video)])
    side = SIZE // 2
    Image.fromarray(canvas).resize((columns * side, 2 * side)).save(target, quality=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    source = demo.DemoSource()
    engine = Engine(source, demo.catalogue(trained=True), planner_for(Settings()))
    pairs: list[Pair] = []
    for seed, scene in enumerate(asked_scenes(options.prompts)):
        pairs.append(pair(engine, request_of(scene, seed, options.steps)))
        print({name: round(value, 4) for name, value in figures(pairs).items()}, flush=True)
        if options.sheet is not None and seed == 0:
            sheet(pairs[0], options.sheet)
    without = replace(request_of(asked_scenes(1)[0], 0, options.steps), preview=Previews())
    day = datetime.now(UTC).date().isoformat()
    result: dict[str, Any] = {
        "date": day,
        "size": f"{SIZE}x{SIZE}x{NUM_FRAMES}",
        "steps": options.steps,
        "preview_at": AT,
        "machine": {"threads": torch.get_num_threads(), **reporting.machine("torch", "diffusers")},
        **{name: round(value, 5) for name, value in figures(pairs).items()},
        "same_bits": bool(np.array_equal(made(engine, without)[0], pairs[0].video)),
    }
    path = options.output / f"previews-{options.steps}-steps-{day}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
