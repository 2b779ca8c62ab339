"""The engine on the real Wan classes at a tiny size: requests, plans, renderings, and a counter of experts' calls."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from tests.kits.videos import given
from worker.base.errors import Cancelled
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Preview, Rendering
from worker.engine.device import planner_for
from worker.request import ModelSpec, VideoRequest
from worker.request.parse import parse
from worker.request.plan import Gpu, MemoryPlan, Planner, Shape
from worker.weights.sources import demo

# No weights nor curves of the user's own are there.
PLANNER = planner_for(Settings(model_cache_dir=Path(tempfile.gettempdir()) / "videogen-no-models"))
PICTURE = Conditioning(image=Image.linear_gradient("L").resize((64, 64)).convert("RGB"))
VIDEO = Conditioning(video=[PICTURE.image] * 5)  # type: ignore[list-item]
BOTH_ENDS = replace(PICTURE, last_image=Image.new("RGB", (64, 64), "navy"))


@cache
def demo_source(blocks: int = 1) -> demo.DemoSource:
    """One for all tests of a process, which makes each model's folder once; none may change what is in there."""
    return demo.DemoSource(blocks=blocks)


class Quiet:
    def __init__(self) -> None:
        self.generated: list[float] = []
        self.previews: list[Preview] = []

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None:
        self.generated.append(fraction)

    def preview(self, preview: Preview) -> None:
        self.previews.append(preview)


class StopsAt(Quiet):
    """Asks for a stop once this share of the steps is done."""

    def __init__(self, stop: Stop, share: float) -> None:
        super().__init__()
        self._stop, self._share = stop, share

    def generating(self, fraction: float) -> None:
        super().generating(fraction)
        if fraction >= self._share:
            self._stop.request(Cancelled())


def request(**fields: Any) -> VideoRequest:
    """A request of 64 x 64 pixels: smaller than a caller may ask for, enough for the engine."""
    video = parse(
        {"prompt": "a cat", "seed": 3, "num_frames": 5, "num_inference_steps": 2, **fields}, default_job_id="j"
    )
    return replace(video.videos[0], width=64, height=64)


def image_request(**fields: Any) -> VideoRequest:
    return request(reference_image_url="https://example.com/a.png", **fields)


def render(
    engine: Engine,
    video: VideoRequest,
    conditioning: Conditioning = PICTURE,
    stop: Stop | None = None,
    *,
    watcher: Quiet | None = None,
    **more: Any,
) -> Rendering:
    """`more` are those of `given`."""
    made = given(engine, video, conditioning, **more)
    return engine.generate(made, watcher=Quiet() if watcher is None else watcher, stop=Stop() if stop is None else stop)


def pixels(rendering: Rendering) -> np.ndarray:
    return np.stack(list(rendering.frames()))


class ExpertCounter:
    """Counts the forward passes of each expert and the timesteps at which they ran."""

    def __init__(self, engine: Engine, key: str) -> None:
        parts = engine.models[key].components
        self.high: list[float] = []
        self.low: list[float] = []
        self._hooks = [
            parts.transformer.register_forward_pre_hook(self._into(self.high), with_kwargs=True),
        ]
        if parts.transformer_2 is not None:
            self._hooks.append(parts.transformer_2.register_forward_pre_hook(self._into(self.low), with_kwargs=True))

    def _into(self, kept: list[float]) -> Any:
        def hook(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
            kept.append(float(kwargs["timestep"].flatten()[-1]))

        return hook

    def __enter__(self) -> ExpertCounter:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


def plan(
    residency: Literal["resident", "swap", "group_offload", "sequential"],
    precision: Literal["fp32", "fp8", "int8"] = "fp32",
    *,
    text_encoder: Literal["resident", "offloaded"] = "offloaded",
    vae_tiling: bool = False,
    peak: int = 0,
) -> MemoryPlan:
    return MemoryPlan(precision, residency, text_encoder, vae_tiling, peak, 0, ())


@dataclass(frozen=True)
class FixedPlanner(Planner):
    """Plans what the test says instead of what a GPU would need."""

    fixed: MemoryPlan | None = None
    below: MemoryPlan | None = None

    def plan(self, spec: ModelSpec, shape: Shape, **_: Any) -> MemoryPlan:
        assert self.fixed is not None
        return self.fixed

    def lower(self, plan: MemoryPlan, spec: ModelSpec, shape: Shape) -> MemoryPlan | None:
        return self.below


def engine_with(
    fixed: MemoryPlan, *, below: MemoryPlan | None = None, gpu: Gpu | None = None, host_bytes: int | None = None
) -> Engine:
    planner = FixedPlanner(gpu, Settings(), host_bytes, fixed, below)
    return Engine(demo_source(), demo.catalogue(), planner, torch.device("cpu"))


MODES: dict[str, tuple[VideoRequest, Conditioning]] = {
    "text": (request(num_inference_steps=4), Conditioning()),
    "image": (image_request(num_inference_steps=4), PICTURE),
    "both ends": (image_request(num_inference_steps=4, last_image_url="https://example.com/b.png"), BOTH_ENDS),
    "video": (request(num_inference_steps=4, reference_video_url="https://example.com/a.mp4"), VIDEO),
    "5b text": (request(model="5b"), Conditioning()),
    "5b image": (image_request(model="5b"), PICTURE),
}
PLANS = {
    "text encoder offloaded": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "sequential": plan("sequential"),
}
