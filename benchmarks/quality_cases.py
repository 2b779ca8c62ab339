"""The cases of `benchmarks.quality`: the exact path, and each thing that departs from it.

A case is a request and what is done to the engine before it. Everything goes through the worker's own engine on the
trained demo model; a case that changes the experts (swapped, another boundary or precision) has an engine to itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from PIL import Image
from tqdm import tqdm

from training import clips as drawing
from training import scenes as writing
from training.scenes import Scene
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Preview
from worker.engine.device import planner_for
from worker.engine.models import precision as quantize
from worker.request import ModelSpec
from worker.request.parse import parse
from worker.request.plan import MemoryPlan
from worker.request.plan.peak import Precision
from worker.request.prompt import compose
from worker.weights.loras import LoraFile
from worker.weights.sources import demo, demo_trained

SIZE = 256
NUM_FRAMES = 17
SCENES_SEED = 2026
# The demo's best guidance; the default of the contract, 5, is a case of its own.
GUIDANCE = 3.0
MOVES = ("pan_left", "pan_right", "pan_up", "pan_down", "zoom_in", "zoom_out", "static")
Experts = Callable[[list[WanTransformer3DModel]], None]
Catalogue = tuple[ModelSpec, ...]


@dataclass(frozen=True, slots=True)
class Clip:
    """What was asked and what came. `picture` [H, W, 3] is the reference picture of image-to-video; `parameters` are
    the engine's."""

    scene: Scene
    frames: np.ndarray
    seconds: float
    picture: np.ndarray | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Case:
    """`fields` join the request; `experts` and `catalogue` change the engine; `against` is the case it is held to.

    With `moves` the camera moves, and is judged.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    experts: Experts | None = None
    catalogue: Callable[[Catalogue], Catalogue] | None = None
    from_image: bool = False
    lora: str | None = None
    lora_scale: float = 1.0
    against: str = "exact"
    all_prompts: bool = False
    moves: bool = False


def asked_scenes(count: int, *, moves: bool = False) -> list[Scene]:
    """Held-out scenes, the same for every run; the camera stands, so that the object's motion is the clip's.

    With `moves` it pans and zooms in turn instead, over the ground from which its move can be read.
    """
    random = np.random.default_rng(SCENES_SEED)
    asked: list[Scene] = []
    while len(asked) < count:
        scene = writing.draw(random, held_out=True, camera=0)
        if not moves:
            asked.append(scene)
        elif scene.ground == "checkerboard":
            asked.append(replace(scene, camera=MOVES[len(asked) % len(MOVES)]))
    return asked


def drawn(scenes: Sequence[Scene], size: int = SIZE) -> list[Clip]:
    """The scenes as the training would have drawn them, `size` pixels wide and high."""
    return [Clip(scene, drawing.clip(scene, height=size, width=size), 0.0) for scene in scenes]


class Studio:
    """Makes the clips of cases; engines that no later case needs are let go."""

    def __init__(self, *, size: int = SIZE) -> None:
        self._size = size
        self._stack = ExitStack()
        self._source = demo.DemoSource()
        self._stack.callback(self._source.close)
        self._plain: Engine | None = None

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clips(self, case: Case, scenes: Sequence[Scene], steps: int) -> list[Clip]:
        engine = self.engine(case)
        bar = tqdm(scenes, desc=case.name, unit="clip", leave=False, disable=None)
        return [self._clip(engine, case, scene, seed, steps) for seed, scene in enumerate(bar)]

    def engine(self, case: Case) -> Engine:
        own = case.experts is not None or case.catalogue is not None
        if not own and self._plain is not None:
            return self._plain
        catalogue = demo.catalogue(trained=True)
        engine = Engine(
            self._source, case.catalogue(catalogue) if case.catalogue else catalogue, planner_for(Settings())
        )
        if case.experts is not None:
            engine.preload(["t2v"], Stop())
            case.experts(list(engine.models["t2v"].experts))
        if not own:
            self._plain = engine
        return engine

    def _clip(self, engine: Engine, case: Case, scene: Scene, seed: int, steps: int) -> Clip:
        prompt = compose(
            writing.sentence(scene, np.random.default_rng(seed)),
            camera_motion=None if scene.camera == "none" else scene.camera,
            enhance=False,
        )
        fields = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, **case.fields}
        picture = drawing.clip(scene, height=self._size, width=self._size)[0] if case.from_image else None
        if picture is not None:
            fields["reference_image_url"] = "https://example.com/picture.png"
        if case.lora is not None:
            fields["loras"] = [
                {"source": f"{case.lora}-{side}", "scale": case.lora_scale, "expert": side} for side in _SIDES
            ]
        payload = {"prompt": prompt, "seed": seed, "num_frames": NUM_FRAMES, "height": SIZE, "width": SIZE, **fields}
        request = replace(parse(payload, default_job_id="quality").videos[0], height=self._size, width=self._size)
        image = None if picture is None else Image.fromarray(picture)
        began = time.perf_counter()
        video = replace(
            engine.video(request),
            prompt=prompt,
            conditioning=Conditioning(image=image),
            loras=tuple(_lora_files(case.lora)),
        )
        rendering = engine.generate(video, watcher=_Nobody(), stop=Stop())
        frames = np.stack(list(rendering.frames()))
        return Clip(scene, frames, time.perf_counter() - began, picture, rendering.parameters)


class _Nobody:
    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None: ...

    def preview(self, preview: Preview) -> None: ...


_SIDES = ("high", "low")


def _lora_files(name: str | None, weights: Path = demo_trained.WEIGHTS) -> list[LoraFile]:
    if name is None:
        return []
    return [LoraFile(weights / "loras" / f"{name}-{side}.safetensors", "", f"{name}-{side}") for side in _SIDES]


def swapped(experts: list[WanTransformer3DModel]) -> None:
    """Each expert gets the other's weights."""
    high, low = ({name: value.clone() for name, value in expert.state_dict().items()} for expert in experts)
    experts[0].load_state_dict(low)
    experts[1].load_state_dict(high)


def in_bf16(experts: list[WanTransformer3DModel]) -> None:
    for expert in experts:
        expert.to(torch.bfloat16)


def quantized(precision: Precision) -> Experts:
    """The worker's own quantisation, forced on."""

    def change(experts: list[WanTransformer3DModel]) -> None:
        plan = replace(_plan(), precision=precision)
        for expert in experts:
            quantize.apply(expert, plan, torch.float32)

    return change


def _plan() -> MemoryPlan:
    planner = planner_for(Settings())
    return planner.standard(demo.catalogue(trained=True)[1])


def boundary_at(ratio: float) -> Callable[[Catalogue], Catalogue]:
    def change(catalogue: Catalogue) -> Catalogue:
        return tuple(spec if spec.boundary_ratio is None else replace(spec, boundary_ratio=ratio) for spec in catalogue)

    return change


_TURBO = MappingProxyType({"quality_preset": "turbo"})
CASES: tuple[Case, ...] = (
    Case("exact", all_prompts=True),
    Case("camera", moves=True, against=""),
    Case("image", from_image=True, against="", all_prompts=True),
    Case("turbo", _TURBO, all_prompts=True),
    Case("image turbo", _TURBO, from_image=True, against="image"),
    Case("guidance 1", {"guidance_scale": 1.0}),
    Case("guidance 5", {"guidance_scale": 5.0}),
    Case("guidance until 0.75", {"guidance_until": 0.75}),
    Case("guidance until 0.5", {"guidance_until": 0.5}),
    Case("guidance until 0.25", {"guidance_until": 0.25}),
    Case("experts swapped", experts=swapped),
    Case("boundary 0.5", catalogue=boundary_at(0.5)),
    Case("shift 1", {"flow_shift": 1.0}),
    Case("shift 3", {"flow_shift": 3.0}),
    Case("steps 20", {"num_inference_steps": 20}),
    Case("step cache balanced", {"step_cache": "balanced"}),
    Case("step cache fast", {"step_cache": "fast"}),
    Case("bf16", experts=in_bf16),
    Case("int8", experts=quantized("int8")),
    Case("fp8 storage", experts=quantized("fp8")),
    Case("style", lora="sepia", lora_scale=0.6),
    Case("style at 0.3", lora="sepia", lora_scale=0.3),
    Case("style at 1", lora="sepia"),
    Case("style taken off"),
)
