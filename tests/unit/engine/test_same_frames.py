"""Every way to make a video makes the frames of the plain one, exactly or nearly; each line below says how nearly.

Plain is everything resident, torch's own attention, and no technique. Turbo and fused weights have twins of their own:
test_turbo and tests/unit/weights/test_fused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry

from tests.kits.engine_kit import MODES, FixedPlanner, demo_source, pixels, plan, render
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.techniques import attention, step_cache
from worker.request import VideoRequest
from worker.request.plan import MemoryPlan
from worker.weights.sources import demo

RESIDENT = plan("resident", text_encoder="resident")


@dataclass(frozen=True)
class Way:
    """`settings` of the worker and `change` of the request; `patches` are (module, name, value).

    num_frames: of both videos, in place of the mode's own. off: the least and the most by which the level that differs
    most may differ, of 0 to 255. said: parameters of each result. modes: of `engine_kit.MODES`.
    """

    plan: MemoryPlan = RESIDENT
    settings: Mapping[str, Any] = field(default_factory=dict)
    change: Mapping[str, Any] = field(default_factory=dict)
    patches: tuple[tuple[object, str, object], ...] = ()
    off: tuple[int, int] = (0, 0)
    said: Mapping[str, object] = field(default_factory=dict)
    modes: tuple[str, ...] = tuple(MODES)
    num_frames: int | None = None

    def plain(self, mode: str) -> tuple[VideoRequest, Conditioning]:
        video, conditioning = MODES[mode]
        return (video if self.num_frames is None else replace(video, num_frames=self.num_frames)), conditioning


REUSE: Mapping[str, Any] = {"enable_image_encode_reuse": True}
PICTURES = ("image", "both ends")
WAYS = {
    "text encoder offloaded": Way(plan("resident"), said={"memory_plan": str(plan("resident").rung)}),
    **{
        residency: Way(plan(residency), said={"memory_plan": str(plan(residency).rung)})  # type: ignore[arg-type]
        for residency in ("swap", "group_offload", "sequential")
    },
    **{
        f"{precision} {residency}": Way(
            plan(residency, precision),  # type: ignore[arg-type]
            off=(1, most),
            said={"memory_plan": str(plan(residency, precision).rung)},  # type: ignore[arg-type]
            modes=("text", "image"),
        )
        for precision, most in (("fp8", 40), ("int8", 25))
        for residency in ("resident", "swap", "group_offload")
    },
    "image encode": Way(settings=REUSE, said={"image_encode_reuse": "on"}, modes=PICTURES, num_frames=33),
    "image encode, group_offload": Way(
        plan("group_offload"), REUSE, said={"image_encode_reuse": "on"}, modes=PICTURES, num_frames=33
    ),
    "image encode, other modes": Way(settings=REUSE, modes=("text", "video", "5b text")),
    "step cache": Way(
        change={"step_cache": "balanced"},
        patches=((step_cache, "THRESHOLDS", {"balanced": 0.0}),),
        said={"step_cache": "balanced", "step_cache_share": 0.0},
        modes=("text", "image", "video"),
    ),
    "attention": Way(
        patches=((attention, "BACKENDS", (attention.Backend("_native_math"),)),),
        off=(0, 1),
        said={"attention_backend": "_native_math"},
    ),
    "compile": Way(settings={"enable_torch_compile": True}, off=(0, 1), said={"torch_compile": True}, modes=("text",)),
}
# Beside another residency, precision or set of modes of the same technique.
SLOW = {
    *("sequential", "compile", "image encode", "image encode, group_offload", "image encode, other modes"),
    *("int8 swap", "int8 group_offload", "fp8 resident", "fp8 group_offload"),
}


def marks(name: str) -> list[pytest.MarkDecorator]:
    own = [pytest.mark.filterwarnings("ignore::DeprecationWarning")] if name == "compile" else []  # torch's compiler
    return [*own, pytest.mark.slow] if name in SLOW else own


def engine_for(way: Way, source: demo.DemoSource, cache: Path) -> Engine:
    settings = Settings(**{"enable_image_encode_reuse": False, "model_cache_dir": cache, **way.settings})
    planner = FixedPlanner(None, settings, None, way.plan, None)
    engine = Engine(source, demo.catalogue(), planner, torch.device("cpu"))
    engine.preload(["i2v"], Stop())  # in every engine first: its text encoder, which is its own, serves t2v too
    return engine


@pytest.fixture(scope="module")
def source() -> demo.DemoSource:
    """Experts of two blocks: what works across blocks needs more than one."""
    return demo_source(2)


@pytest.fixture(scope="module")
def plain(source: demo.DemoSource, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Way, str], np.ndarray]:
    """Makes a mode's video in the plain way, once: uint8 [F, h, w, 3]."""
    engine = engine_for(Way(), source, tmp_path_factory.mktemp("models"))

    @cache
    def made(mode: str, num_frames: int | None) -> np.ndarray:
        return pixels(render(engine, *Way(num_frames=num_frames).plain(mode)))

    return lambda way, mode: made(mode, way.num_frames)


@pytest.fixture
def attention_as_before() -> Iterator[None]:
    active = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = active


@pytest.mark.usefixtures("attention_as_before")
@pytest.mark.parametrize(
    ("name", "modes"),
    [
        *(pytest.param(name, way.modes[:2], marks=marks(name), id=name) for name, way in WAYS.items()),
        *(
            pytest.param(name, way.modes[2:], marks=pytest.mark.slow, id=f"{name}: more modes")
            for name, way in WAYS.items()
            if way.modes[2:]
        ),
    ],
)
def test_it_makes_the_frames_of_the_plain_way(
    name: str,
    modes: tuple[str, ...],
    plain: Callable[[Way, str], np.ndarray],
    source: demo.DemoSource,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = WAYS[name]
    wanted = {mode: plain(way, mode).astype(int) for mode in modes}
    for module, attribute, value in way.patches:
        monkeypatch.setattr(module, attribute, value)
    engine = engine_for(way, source, tmp_path)
    for mode in modes:
        video, conditioning = way.plain(mode)
        rendering = render(engine, replace(video, **way.change), conditioning)
        assert {key: rendering.parameters.get(key) for key in way.said} == dict(way.said), mode
        found = pixels(rendering).astype(int)
        assert found.shape == wanted[mode].shape
        least, most = way.off
        assert least <= np.abs(found - wanted[mode]).max() <= most, mode
        assert wanted[mode].std() > 1, "a grey video would be like any other"
    if way.change:  # what one request asks for is gone for the next
        assert (pixels(render(engine, *way.plain(modes[0]))) == wanted[modes[0]]).all()
