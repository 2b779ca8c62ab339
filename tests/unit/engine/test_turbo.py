"""Turbo with distilled LoRAs: which experts get them, at which timesteps they run, and that nothing stays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kits import distilled_kit, lora_kit, weights_kit
from tests.kits.engine_kit import (
    PLANNER,
    VIDEO,
    ExpertCounter,
    FixedPlanner,
    Quiet,
    StopsAt,
    demo_source,
    image_request,
    pixels,
    plan,
    render,
    request,
)
from tests.kits.hub_server import Fault, HubServer
from worker.base.errors import Cancelled, ModelUnavailable
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Engine
from worker.net.opener import LORA_LIMITS
from worker.request import ModelSpec, VideoRequest
from worker.request.catalogue import DistilledLoras
from worker.request.plan import MemoryPlan, Shape
from worker.weights.loras import DistilledFiles, LoraFile
from worker.weights.sources import demo

TURBO = request(quality_preset="turbo")
HYBRID = request(quality_preset="turbo", turbo_variant="hybrid")
HYBRID_HIGH = {
    # Of 20 steps at shift 12 those at or above t = 875; of 20 at shift 5 those at or above t = 900.
    "t2v": [999, 995, 990, 985, 979, 973, 965, 957, 947, 936, 923, 907, 889],
    "i2v": [999, 989, 978, 965, 952, 937, 921, 902],
}


@pytest.fixture(scope="module")
def engine() -> Engine:
    made = Engine(demo_source(), distilled_kit.catalogue(), PLANNER)
    made.preload(["i2v", "t2v"], Stop())
    return made


@pytest.fixture
def hub(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with weights_kit.served(monkeypatch) as server:
        distilled_kit.serve(server, engine.models["t2v"].components)
        yield server


@pytest.fixture
def files(hub: HubServer, tmp_path: Path) -> DistilledFiles:
    return distilled_kit.store(tmp_path / "models", hub).fetch_distilled(distilled_kit.SETS, path="quality_preset")


def adapters_of(engine: Engine) -> list[set[str]]:
    """The names of the LoRAs on each expert, to be asked for during a run."""
    return [set(getattr(expert, "peft_config", {})) for expert in engine.models["t2v"].components.modules]


class Watching(Quiet):
    """Notes what the experts carry while the steps run."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.carried: list[list[set[str]]] = []

    def generating(self, fraction: float) -> None:
        if fraction > 0:
            self.carried.append(adapters_of(self.engine))


@pytest.mark.parametrize(("video", "on_each"), [(TURBO, (1, 1)), (HYBRID, (0, 1)), (request(), (0, 0))])
def test_each_expert_carries_its_own_lora(
    engine: Engine, files: DistilledFiles, video: VideoRequest, on_each: tuple[int, int]
) -> None:
    watcher = Watching(engine)
    wanted = files if video.quality_preset == "turbo" else None
    render(engine, video, watcher=watcher, distilled=wanted)
    assert {tuple(map(len, carried)) for carried in watcher.carried} == {on_each}
    assert adapters_of(engine) == [set(), set()]


def twin(*changes: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]) -> Engine:
    """The engine without LoRAs, whose two experts have the given differences added to their weights."""
    made = Engine(demo_source(), demo.catalogue(), PLANNER)
    made.preload(["i2v", "t2v"], Stop())
    parts = made.models["t2v"].components
    for deltas in changes:
        for expert, own in zip((parts.transformer, parts.transformer_2), deltas, strict=True):
            for name, delta in own.items():
                with torch.no_grad():
                    expert.get_parameter(name).add_(delta)
    return made


def distilled_deltas(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    experts = engine.models["t2v"].components.modules
    high, low = (
        lora_kit.deltas(lora_kit.factors(expert, *lora_kit.ORIGINAL, seed=seed), scale=0.5)  # alpha 1, rank 2
        for seed, expert in enumerate(experts)
    )
    return high, low


def test_the_loras_are_those_of_their_expert(engine: Engine, files: DistilledFiles) -> None:
    """A changed weight in place of the LoRA gives the same video."""
    got = pixels(render(engine, TURBO, distilled=files)).astype(int)
    assert np.abs(pixels(render(twin(distilled_deltas(engine)), TURBO)).astype(int) - got).max() <= 1
    assert np.abs(pixels(render(twin(), TURBO)).astype(int) - got).max() > 5


def test_the_result_names_variant_and_weights(engine: Engine, files: DistilledFiles) -> None:
    full, hybrid = render(engine, TURBO, distilled=files).parameters, render(engine, HYBRID, distilled=files).parameters
    assert (full["turbo_variant"], full["distilled_weights"]) == ("full", distilled_kit.REPO)
    assert (hybrid["turbo_variant"], hybrid["distilled_weights"]) == ("hybrid", distilled_kit.REPO)
    assert (full["scheduler"], full["flow_shift"]) == ("DistilledScheduler", 5.0)
    assert (hybrid["scheduler"], hybrid["flow_shift"]) == ("HybridScheduler", 12.0)
    assert "turbo_variant" not in render(engine, request()).parameters


def test_after_turbo_the_next_video_is_the_same_to_the_bit(engine: Engine, files: DistilledFiles) -> None:
    video = request(num_inference_steps=8)
    before = pixels(render(engine, video))
    for turbo in (TURBO, HYBRID):
        first = pixels(render(engine, turbo, distilled=files))
        assert (pixels(render(engine, video)) == before).all()
        assert (pixels(render(engine, turbo, distilled=files)) == first).all()


def test_a_stopped_turbo_leaves_nothing_on_the_experts(engine: Engine, files: DistilledFiles) -> None:
    before = pixels(render(engine, request()))
    stop = Stop()

    with pytest.raises(Cancelled):
        render(engine, TURBO, stop=stop, watcher=StopsAt(stop, 0.5), distilled=files)
    assert adapters_of(engine) == [set(), set()]
    assert (pixels(render(engine, request())) == before).all()


def test_the_callers_loras_go_on_top(engine: Engine, files: DistilledFiles, tmp_path: Path) -> None:
    """Both sets of differences in the weights give the same video."""
    pairs = lora_kit.factors(engine.models["t2v"].components.transformer, "blocks.0.ffn.net.2", seed=9)
    style = lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs), "style")
    video = request(quality_preset="turbo", loras=[{"source": "style.safetensors", "scale": 3.0}])
    alone = pixels(render(engine, TURBO, distilled=files)).astype(int)
    styled = pixels(render(engine, video, distilled=files, loras=(LoraFile(style, "", style.name),))).astype(int)
    own = lora_kit.deltas(pairs, scale=3.0)
    wanted = pixels(render(twin(distilled_deltas(engine), (own, own)), TURBO)).astype(int)
    assert np.abs(styled - wanted).max() <= 1
    assert np.abs(styled - alone).max() > 5
    assert (pixels(render(engine, TURBO, distilled=files)) == alone).all()


@pytest.mark.parametrize(("key", "make"), [("t2v", request), ("i2v", image_request)])
def test_hybrid_runs_the_models_own_steps_and_then_the_two_distilled_ones(engine: Engine, key: str, make: Any) -> None:
    video = make(quality_preset="turbo", turbo_variant="hybrid")
    with ExpertCounter(engine, key) as ran:
        render(engine, video)
    assert ran.high == [timestep for timestep in HYBRID_HIGH[key] for _ in ("guided", "twice")]
    assert ran.low == pytest.approx([833.3, 625.0], abs=0.05)  # unguided: once each


def test_hybrid_from_a_video_leaves_the_first_steps_out(engine: Engine) -> None:
    video = request(
        quality_preset="turbo", turbo_variant="hybrid", reference_video_url="https://example.com/a.mp4", strength=0.5
    )
    with ExpertCounter(engine, "t2v") as ran:
        render(engine, video, conditioning=VIDEO)
    assert ran.high[::2] == HYBRID_HIGH["t2v"][8:]  # 15 steps in all, of which int(7.5) run
    assert ran.low == pytest.approx([833.3, 625.0], abs=0.05)
    with ExpertCounter(engine, "t2v") as ran:
        render(engine, replace(video, strength=0.1), conditioning=VIDEO)
    assert (ran.high, ran.low) == ([], pytest.approx([625.0], abs=0.05))


def test_hybrid_follows_the_callers_shift(engine: Engine) -> None:
    with ExpertCounter(engine, "t2v") as ran:
        rendering = render(engine, replace(HYBRID, flow_shift=5.0))
    assert rendering.parameters["flow_shift"] == 5.0
    assert rendering.warnings == ()
    assert len(ran.high) == 2 * 9  # of 20 steps at shift 5, with t >= 875
    assert ran.low == pytest.approx([833.3, 625.0], abs=0.05)


def test_what_was_fetched_is_not_asked_for_again(
    hub: HubServer, tmp_path: Path, files: DistilledFiles, engine: Engine
) -> None:
    asked = len(hub.hits)
    store = distilled_kit.store(tmp_path / "models", hub)  # as after a restart
    assert store.fetch_distilled(distilled_kit.SETS, path="quality_preset") == files
    assert len(hub.hits) == asked


def test_the_second_set_serves_where_the_first_cannot_be_had(
    hub: HubServer, tmp_path: Path, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    sets = (DistilledLoras("org/gone", "high.safetensors", "low.safetensors"), *distilled_kit.SETS)
    got = distilled_kit.store(tmp_path / "models", hub).fetch_distilled(sets, path="quality_preset")
    assert got.repo == distilled_kit.REPO
    assert "org/gone cannot be fetched" in caplog.text


@pytest.mark.parametrize("broken", ["missing", "half", "down", "damaged"])
def test_without_distilled_loras_the_remedy_is_told(hub: HubServer, tmp_path: Path, broken: str) -> None:
    if broken == "missing":
        del hub.repos[distilled_kit.REPO]
    elif broken == "half":
        hub.repos[distilled_kit.REPO].files.pop("first/low.safetensors")
    elif broken == "down":
        hub.faults.append(Fault("/", 403))
    else:
        hub.flips.update({"first/high.safetensors": 100})
    store = distilled_kit.store(tmp_path / "models", hub)
    with pytest.raises(ModelUnavailable, match=r"builder\.prepare --turbo") as caught:
        store.fetch_distilled(distilled_kit.SETS, path="job_request_params[1].quality_preset")
    assert caught.value.path == "job_request_params[1].quality_preset"


@pytest.mark.parametrize(("beyond", "good"), [(0, True), (1, False)])
def test_the_size_of_a_distilled_lora_is_bounded_by_itself(
    hub: HubServer, tmp_path: Path, beyond: int, good: bool
) -> None:
    """They are larger than what a caller may send."""
    sizes = [len(blob.content) for blob in hub.repos[distilled_kit.REPO].files.values()]
    store = distilled_kit.store(
        tmp_path / "models", hub, limits=replace(LORA_LIMITS, max_bytes=10), distilled_max_bytes=max(sizes) - beyond
    )
    if good:
        store.fetch_distilled(distilled_kit.SETS, path="quality_preset")
    else:
        with pytest.raises(ModelUnavailable, match="larger than"):
            store.fetch_distilled(distilled_kit.SETS, path="quality_preset")


def test_loras_that_do_not_fit_are_the_models_fault(engine: Engine, hub: HubServer, tmp_path: Path) -> None:
    distilled_kit.serve_misfit(hub)
    files = distilled_kit.store(tmp_path / "misfit", hub).fetch_distilled(distilled_kit.SETS, path="quality_preset")
    before = pixels(render(engine, request()))
    with pytest.raises(ModelUnavailable, match="do not serve this model"):
        render(engine, TURBO, distilled=files)
    assert (pixels(render(engine, request())) == before).all()


def test_the_memory_plan_counts_the_distilled_loras(files: DistilledFiles) -> None:
    shapes: list[Shape] = []

    class Noting(FixedPlanner):
        def plan(self, spec: ModelSpec, shape: Shape, **_: Any) -> MemoryPlan:
            shapes.append(shape)
            return plan("resident")

    noting = Noting(None, Settings())
    one = [{"source": "a.safetensors"}]
    videos = [request(), request(loras=one), TURBO, request(quality_preset="turbo", loras=one)]
    for catalogue in (distilled_kit.catalogue(), demo.catalogue()):
        for video in videos:
            Engine(demo_source(), catalogue, noting).video(video)
    assert [shape.loras for shape in shapes] == [0, 1, 1, 2, 0, 1, 0, 1]
