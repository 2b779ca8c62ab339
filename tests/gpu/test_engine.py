"""The engine on the small built-in model: every arrangement of the weights gives the same frames on the GPU too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.kits.engine_kit import PICTURE, FixedPlanner, image_request, pixels, plan, render, request
from worker.base.errors import Cancelled
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.models import pinned
from worker.request.plan import Gpu, MemoryPlan
from worker.weights.sources import demo

GPU = torch.device("cuda", 0)
TEXT, NOTHING = request(num_inference_steps=6), Conditioning()
IMAGE = image_request(num_inference_steps=6)
RESIDENT = plan("resident", text_encoder="resident")


def engine_on(fixed: MemoryPlan, gpu: Gpu | None = None, settings: Settings | None = None) -> Engine:
    planner = FixedPlanner(gpu, Settings() if settings is None else settings, None, fixed)
    return Engine(demo.DemoSource(blocks=3, heads=2), demo.catalogue(), planner, GPU)


def weights(engine: Engine) -> dict[str, torch.Tensor]:
    expert = engine.models["t2v"].components.transformer
    return {name: tensor.detach().cpu().clone() for name, tensor in expert.state_dict().items()}


LOWER: dict[str, Any] = {
    "text encoder offloaded": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "sequential": plan("sequential"),
}
# Weights that are streamed by layer take no fused kernels in the experts.
KERNELS = {name: Settings(enable_fused_kernels=name != "sequential") for name in LOWER}


@pytest.mark.parametrize("name", LOWER)
def test_every_plan_makes_the_same_frames_twice(name: str) -> None:
    exact = engine_on(RESIDENT, settings=KERNELS[name])
    wanted = pixels(render(exact, TEXT, NOTHING))
    kept = weights(exact)
    engine = engine_on(LOWER[name], settings=KERNELS[name])
    for _ in range(2):  # the second time with what the first one learned of the order of the layers
        assert np.array_equal(pixels(render(engine, TEXT, NOTHING)), wanted)
    found = weights(engine)
    assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())


def test_what_takes_turns_waits_in_locked_memory() -> None:
    engine = engine_on(plan("swap"))
    render(engine, TEXT, NOTHING)
    parts = engine.models["t2v"].components
    engine.models["t2v"].residency.leave()
    for module in (parts.shared.text_encoder, parts.shared.vae, *parts.modules):
        assert all(tensor.is_pinned() for tensor in module.parameters())
    del parts, module
    engine.models.drop("t2v")
    assert not pinned._locked


@pytest.mark.parametrize("name", LOWER)
def test_a_model_is_rearranged_from_memory(name: str) -> None:
    engine = engine_on(RESIDENT, settings=KERNELS[name])
    wanted = pixels(render(engine, TEXT, NOTHING))
    engine.models._read = _refused
    engine.planner = replace(engine.planner, fixed=LOWER[name])  # type: ignore[call-arg]
    assert np.array_equal(pixels(render(engine, TEXT, NOTHING)), wanted)


def _refused(*_: object, **__: object) -> None:
    raise AssertionError("weights were read again")


def test_two_models_take_turns() -> None:
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (9, 0))
    engine = engine_on(plan("resident", peak=gpu.budget_bytes), gpu)
    first = pixels(render(engine, TEXT, NOTHING))
    second = pixels(render(engine, IMAGE, PICTURE))
    engine.models._read = _refused
    for _ in range(2):
        assert np.array_equal(pixels(render(engine, TEXT, NOTHING)), first)
        assert np.array_equal(pixels(render(engine, IMAGE, PICTURE)), second)


@pytest.mark.parametrize("residency", ["resident", "swap"])
@pytest.mark.parametrize("arithmetic", ["off", "on"])
def test_fp8_weights_make_a_video(residency: Any, arithmetic: Any) -> None:
    if torch.cuda.get_device_capability(GPU) < (8, 9):
        pytest.skip("this GPU has no fp8")
    exact = pixels(render(engine_on(RESIDENT), TEXT, NOTHING)).astype(int)
    engine = engine_on(plan(residency, "fp8"), settings=Settings(quantized_compute=arithmetic))
    rendering = render(engine, TEXT, NOTHING)
    assert rendering.parameters["quantized_compute"] == ("off" if arithmetic == "off" else "fp8")
    assert 0 < np.abs(pixels(rendering).astype(int) - exact).max() <= 60


def test_a_stop_ends_within_a_step() -> None:
    engine = engine_on(RESIDENT)
    wanted = pixels(render(engine, TEXT, NOTHING))
    stop, passes = Stop(), []

    def ask(*_: object) -> None:
        passes.append(1)
        stop.request(Cancelled())

    hooks = [expert.register_forward_pre_hook(ask) for expert in engine.models["t2v"].experts]
    with pytest.raises(Cancelled):
        render(engine, TEXT, NOTHING, stop)
    for hook in hooks:
        hook.remove()
    assert 1 <= len(passes) <= 2  # the passes of one step
    assert np.array_equal(pixels(render(engine, TEXT, NOTHING)), wanted)
