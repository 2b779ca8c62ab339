"""A model in memory is arranged anew without reading it, and makes room without being copied twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kits.engine_kit import MODES, engine_with, pixels, plan, render
from tests.unit.engine.test_loaded import Volume, engine_reading
from tests.unit.engine.test_loaded import engines as engines  # a fixture
from worker.base.errors import Cancelled
from worker.base.stop import Stop
from worker.engine import Engine
from worker.engine.models.residency import _Parked
from worker.request.plan import Gpu, MemoryPlan

RESIDENT = plan("resident", text_encoder="resident")
T2V = next(spec for spec in engine_with(RESIDENT).catalogue if spec.key == "t2v")
LOWER = {
    "text encoder offloaded": plan("resident"),
    "swap": plan("swap"),
    "group offload": plan("group_offload"),
    "sequential": plan("sequential"),
}


def test_each_lower_plan_takes_the_weights_that_are_in_memory(engines: list[Engine]) -> None:
    volume = Volume()
    engine = engine_reading(volume, engines, RESIDENT)
    wanted = pixels(render(engine, *MODES["text"]))
    read = len(volume.order)
    for name in ("text encoder offloaded", "swap", "group offload"):
        lower = LOWER[name]
        engine.models.rearrange(T2V, lower, Stop())
        assert engine.models["t2v"].plan is lower
        engine.planner = replace(engine.planner, fixed=lower)  # type: ignore[call-arg]
        assert (pixels(render(engine, *MODES["text"])) == wanted).all(), name
    assert len(volume.order) == read


@pytest.mark.parametrize(
    ("before", "after"),
    [(plan("group_offload"), plan("sequential")), (RESIDENT, plan("swap", "fp8"))],
    ids=["streamed", "another precision"],
)
def test_what_cannot_be_kept_is_dropped(before: MemoryPlan, after: MemoryPlan, engines: list[Engine]) -> None:
    engine = engine_reading(Volume(), engines, before)
    render(engine, *MODES["text"])
    engine.models.rearrange(T2V, after, Stop())
    with pytest.raises(KeyError):
        engine.models["t2v"]
    engine.models.rearrange(T2V, after, Stop())  # of a model that is not loaded: nothing


def test_what_is_still_read_is_waited_for_until_the_job_is_stopped(engines: list[Engine]) -> None:
    volume = Volume("transformer_2")
    engine = engine_reading(volume, engines, RESIDENT)
    engine.models.use(T2V, RESIDENT, Stop())
    assert volume.asked["transformer_2"].wait(60)
    stop = Stop()
    stop.request(Cancelled())
    with pytest.raises(Cancelled):
        engine.models.rearrange(T2V, plan("swap"), stop)
    volume.let()
    engine.models.rearrange(T2V, plan("swap"), Stop())
    assert engine.models["t2v"].plan == plan("swap")


def test_memory_that_ran_out_while_loading_is_not_kept(engines: list[Engine]) -> None:
    volume = Volume("transformer_2")
    volume.failures["transformer_2"] = torch.OutOfMemoryError("CUDA out of memory")
    engine = engine_reading(volume, engines, RESIDENT)
    engine.models.use(T2V, RESIDENT, Stop())
    volume.let()
    engine.models.rearrange(T2V, plan("swap"), Stop())
    with pytest.raises(KeyError):
        engine.models["t2v"]


def test_a_model_that_makes_room_again_is_not_copied_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights do not change: what host memory holds once serves every later eviction."""
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (8, 0))
    engine = engine_with(plan("resident", peak=gpu.budget_bytes), gpu=gpu)
    kept: list[Any] = []
    monkeypatch.setattr(_Parked, "_keep", _counted(_Parked._keep, kept))
    first = pixels(render(engine, *MODES["text"]))
    second = pixels(render(engine, *MODES["image"]))
    assert engine.models["t2v"].residency.has_experts_on_host
    assert not engine.models["i2v"].residency.has_experts_on_host
    for _ in range(2):
        assert (pixels(render(engine, *MODES["text"])) == first).all()
        assert (pixels(render(engine, *MODES["image"])) == second).all()
    tensors = sum(
        len(list(expert.parameters())) + len(list(expert.buffers()))
        for key in ("t2v", "i2v")
        for expert in engine.models[key].experts
    )
    shared = engine.models["t2v"].components.shared
    tensors += len(list(shared.text_encoder.parameters())) + len(list(shared.text_encoder.buffers()))
    assert sum(kept) == tensors


def _counted(keep: Any, kept: list[int]) -> Any:
    def counting(parked: _Parked) -> None:
        kept.append(sum(1 for tensor in parked._tensors() if tensor not in parked._host))
        keep(parked)

    return counting
