"""A model in memory is arranged anew without reading it, and makes room without being copied twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kits.engine_kit import MODES, engine_with, pixels, plan, render
from tests.kits.loading_kit import Reading
from worker.base.stop import Stop
from worker.engine.models.pool import Loaded
from worker.engine.models.residency import _Parked
from worker.request.plan import Gpu, MemoryPlan
from worker.weights.sources import demo

RESIDENT = plan("resident", text_encoder="resident")
T2V = next(spec for spec in demo.catalogue() if spec.key == "t2v")


@pytest.mark.parametrize("residency", ["group_offload", "sequential"])
def test_each_lower_plan_takes_the_weights_that_are_in_memory(residency: Any, reading: Reading) -> None:
    engine, volume = reading(fixed=RESIDENT)
    wanted = weights(engine.models.use(T2V, RESIDENT, Stop()))
    read = len(volume.order)
    for lower in (plan("resident"), plan("swap"), RESIDENT, plan(residency)):
        loaded = engine.models.use(T2V, lower, Stop())
        assert loaded.plan is lower
        assert engine.models["t2v"] is loaded
        found = weights(loaded)
        assert all(torch.equal(found[key], tensor) for key, tensor in wanted.items())
    assert len(volume.order) == read


def weights(loaded: Loaded) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{name}": tensor.detach().clone()
        for number, expert in enumerate(loaded.experts)
        for name, tensor in expert.state_dict().items()
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [(plan("group_offload"), plan("sequential")), (RESIDENT, plan("swap", "fp8"))],
    ids=["streamed", "another precision"],
)
def test_what_cannot_be_kept_is_read_again(before: MemoryPlan, after: MemoryPlan, reading: Reading) -> None:
    engine, volume = reading(fixed=before)
    _ = engine.models.use(T2V, before, Stop()).experts
    _ = engine.models.use(T2V, after, Stop()).experts
    assert volume.order.count("t2v/transformer_2") == 2


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
