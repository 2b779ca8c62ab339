"""Makes videos with a crew of two and with one process, saves both, ends the crew.

For a process of its own, for the same reason as `crew_dies`. Writes as JSON what the engine said of itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch.distributed as dist
from PIL import Image

from tests.kits.videos import given
from worker import start
from worker.base import settings
from worker.base.errors import Cancelled
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Rendering
from worker.engine.device import planner_for
from worker.request import VideoRequest
from worker.request.parse import parse
from worker.weights.sources import demo

PICTURE = Conditioning(image=Image.linear_gradient("L").resize((80, 64)).convert("RGB"))


class Watcher:
    """Calls `at_step` when a step is done."""

    def __init__(self, at_step: Callable[[], None]) -> None:
        self._at_step = at_step

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None:
        if fraction > 0:
            self._at_step()


def request(**fields: Any) -> VideoRequest:
    """80 x 64 and 9 frames: 60 tokens, more than two processes need to share unevenly sized blocks."""
    payload = {"prompt": "a cat", "seed": 3, "num_frames": 9, "num_inference_steps": 3, **fields}
    return replace(parse(payload, default_job_id="j").videos[0], width=80, height=64)


def render(engine: Engine, video: VideoRequest, at_step: Callable[[], None], stop: Stop) -> Rendering:
    return engine.generate(given(engine, video, PICTURE), watcher=Watcher(at_step), stop=stop)


def frames(engine: Engine, video: VideoRequest) -> np.ndarray:
    """uint8 [F, h, w, 3]."""
    return np.stack(list(render(engine, video, lambda: None, Stop()).frames()))


def make(saved: Path, said: Path, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    worker = start.build_worker(settings.load())
    alone = Engine(demo.DemoSource(heads=2), demo.catalogue(), planner_for(settings.Settings(gpus=1)))
    videos = {
        "text": request(),
        "image": request(reference_image_url="https://example.com/a.png"),
        "another seed": request(seed=4),
    }
    made = {name: (frames(worker.engine, video), frames(alone, video)) for name, video in videos.items()}

    stop, stopped = Stop(), False
    try:
        render(worker.engine, request(num_inference_steps=9), lambda: stop.request(Cancelled()), stop)
    except Cancelled:
        stopped = True
    made["after a stop"] = (frames(worker.engine, videos["text"]), made["text"][1])

    cached = render(worker.engine, request(step_cache="fast"), lambda: None, Stop())
    worker.engine._work._crew.disband()  # type: ignore[attr-defined]  # a worker ends its crew by ending itself
    dist.destroy_process_group()
    np.savez(saved, **{f"{name}/{by}": array for name, pair in made.items() for by, array in enumerate(pair)})
    report = {
        "gpu": worker.engine.gpu,
        "stopped": stopped,
        "parameters": cached.parameters,
        "warnings": cached.warnings,
        "children": len([each for each in psutil.Process().children() if "spawn_main" in " ".join(each.cmdline())]),
    }
    said.write_text(json.dumps(report))
