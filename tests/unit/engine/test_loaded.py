"""A model is used while its last parts are on their way, under every plan, and whatever goes wrong on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kits.engine_kit import MODES, PICTURE, PLANS, Quiet, engine_with, image_request, pixels, plan, render
from tests.kits.slow import slow
from tests.kits.videos import given
from worker.base.errors import Cancelled, JobTimeout, ModelUnavailable
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine
from worker.engine.models.arrivals import LAYERS
from worker.request.plan import Gpu
from worker.weights.sources import demo
from worker.weights.tensors import reading
from worker.weights.tensors.reading import Target

PATIENCE_S = 60.0


class Volume:
    """Reads as the worker does, but what is closed waits: a component is read when it is let through."""

    def __init__(self, *closed: str) -> None:
        self._open = {name: threading.Event() for name in closed}
        self.asked = {name: threading.Event() for name in closed}
        self.order: list[str] = []
        self.failures: dict[str, Exception] = {}

    def let(self, *names: str) -> None:
        for name in names if names else tuple(self._open):
            self._open[name].set()

    def __call__(self, targets: list[Target], *, check: Callable[[], None], on_bytes: Callable[[int], None]) -> None:
        folder = targets[0].stored.path.parent
        name = f"{folder.parent.name}/{folder.name}"
        self.order.append(name)
        for closed in (name, folder.name):
            if closed in self._open:
                self.asked[closed].set()
                while not self._open[closed].wait(0.01):
                    check()
        if (failure := self.failures.pop(folder.name, None)) is not None:
            raise failure
        reading.read(targets, check=check, on_bytes=on_bytes)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Engines of a test; none leaves a thread behind."""
    made: list[Engine] = []
    yield made
    for engine in made:
        for key in list(engine.models._models):
            engine.models.drop(key)


def engine_reading(volume: Volume, engines: list[Engine], fixed: Any = None, **options: Any) -> Engine:
    engine = engine_with(plan("resident") if fixed is None else fixed, **options)
    engine.models._read = volume
    engines.append(engine)
    return engine


class InBackground:
    """A video that is made in another thread, as far as it gets."""

    def __init__(self, engine: Engine, video: Any, conditioning: Conditioning, stop: Stop | None = None) -> None:
        self.watcher = Watcher()
        self.failure: BaseException | None = None
        self.frames: np.ndarray | None = None
        self.parameters: dict[str, Any] = {}
        self._given = engine, video, conditioning, Stop() if stop is None else stop
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        engine, video, conditioning, stop = self._given
        try:
            rendering = engine.generate(given(engine, video, conditioning), watcher=self.watcher, stop=stop)
            self.parameters = rendering.parameters
            self.frames = pixels(rendering)
        except BaseException as failure:  # noqa: BLE001 - looked at by the test
            self.failure = failure

    def end(self) -> InBackground:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.005)


class Watcher(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[float] = []
        self.first_step = threading.Event()

    def loading(self, fraction: float) -> None:
        self.loaded.append(fraction)

    def generating(self, fraction: float) -> None:
        super().generating(fraction)
        if fraction > 0:
            self.first_step.set()


@pytest.fixture(scope="module")
def whole() -> dict[str, np.ndarray]:
    """The frames of each mode by a model that was loaded whole, and alone: the demo's text encoders differ."""
    frames: dict[str, np.ndarray] = {}
    for name in ("text", "image", "video"):
        engine = engine_with(plan("resident"))
        engine.models._overlap = False
        frames[name] = pixels(render(engine, *MODES[name]))
    return frames


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("text", "swap"),
        ("image", "resident"),
        *slow(*((mode, "text encoder offloaded") for mode in ("text", "image", "video"))),
        *slow(("text", "resident"), ("image", "swap"), ("video", "resident"), ("video", "swap")),
    ],
)
def test_the_first_steps_run_while_the_low_noise_expert_is_read(
    name: str, mode: str, whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume("transformer_2")
    engine = engine_reading(volume, engines, PLANS.get(name, plan("resident")))
    video, conditioning = MODES[mode]
    # Of 10 steps several are the high-noise expert's.
    making = InBackground(engine, replace(video, num_inference_steps=10), conditioning)
    assert making.watcher.first_step.wait(PATIENCE_S)
    assert making.frames is None
    volume.let()
    making.end()
    assert making.failure is None
    assert (pixels(render(engine, video, conditioning)) == whole[mode]).all()
    assert engine.models["i2v" if mode == "image" else "t2v"].is_whole


@pytest.mark.parametrize("name", ["group offload", "sequential"])
def test_weights_that_are_streamed_are_all_there_before_the_first_step(
    name: str, whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume("transformer_2")
    making = InBackground(engine_reading(volume, engines, PLANS[name]), *MODES["text"])
    assert volume.asked["transformer_2"].wait(PATIENCE_S)
    assert not making.watcher.generated
    volume.let()
    assert (making.end().frames == whole["text"]).all()


@pytest.mark.parametrize("precision", ["fp8", *slow("int8")])
def test_each_expert_is_quantised_when_it_is_there(precision: Any, engines: list[Engine]) -> None:
    engine = engine_reading(Volume(), engines, plan("swap", precision))
    frames = pixels(render(engine, *MODES["text"]))
    plain = engine_reading(Volume(), engines, plan("swap", precision))
    plain.models._overlap = False
    assert (frames == pixels(render(plain, *MODES["text"]))).all()


def test_layers_are_not_replaced_while_a_lora_is_put_on(engines: list[Engine]) -> None:
    engine = engine_reading(Volume(), engines, plan("swap", "int8"))
    with LAYERS:
        engine.preload(["t2v"], Stop())
        expert = engine.models["t2v"].components.own[0]
        while expert.read_bytes < expert.nbytes:
            pass
        assert not expert.there
    expert.wait()
    assert expert.module.blocks[0].attn1.to_q.weight.dtype == torch.int8


def test_what_a_video_needs_first_is_read_first(engines: list[Engine]) -> None:
    for key, mode, order in (
        ("t2v", "text", ["text_encoder", "transformer", "vae", "transformer_2"]),
        ("i2v", "image", ["text_encoder", "vae", "transformer", "transformer_2"]),
        ("5b", "5b text", ["text_encoder", "transformer", "vae"]),
    ):
        volume = Volume()
        list(render(engine_reading(volume, engines), *MODES[mode]).frames())
        assert volume.order == [f"{key}/{name}" for name in order]


def test_the_vae_of_a_text_to_video_model_is_not_waited_for_before_the_first_step(engines: list[Engine]) -> None:
    volume = Volume("vae")
    video, conditioning = MODES["text"]
    making = InBackground(engine_reading(volume, engines), replace(video, num_inference_steps=10), conditioning)
    assert making.watcher.first_step.wait(PATIENCE_S)
    volume.let()
    assert making.end().failure is None


@pytest.mark.parametrize(
    ("below", "arriving"),
    [
        ("swap", True),
        ("swap", False),
        *slow(
            *(
                (name, arriving)
                for name in ("text encoder offloaded", "group offload", "sequential")
                for arriving in (True, False)
            )
        ),
    ],
)
def test_out_of_memory_reads_nothing_again(
    below: str, arriving: bool, whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    """The next lower plan needs no other bytes, whether or not the low-noise expert is still being read."""
    volume = Volume("transformer_2")
    engine = engine_reading(volume, engines, plan("resident", text_encoder="resident"), below=PLANS[below])
    if not arriving:
        volume.let()
    tries: list[bool] = []

    def fail_once(*_: object) -> None:
        tries.append(volume.asked["transformer_2"].is_set())
        volume.let()
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine.preload(["t2v"], Stop())
    engine.models["t2v"].components.modules[0].register_forward_pre_hook(fail_once)
    making = InBackground(engine, *MODES["text"]).end()
    assert making.failure is None
    assert len(tries) > 1
    assert PLANS[below].residency in making.parameters["memory_plan"]
    assert (making.frames == whole["text"]).all()
    assert sorted(volume.order) == [f"t2v/{name}" for name in ("text_encoder", "transformer", "transformer_2", "vae")]


def test_a_failure_of_the_low_noise_expert_fails_that_video_and_the_next_one_loads_anew(
    whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume("transformer_2")
    volume.failures["transformer_2"] = OSError(5, "Input/output error")
    engine = engine_reading(volume, engines)
    video, conditioning = MODES["text"]
    making = InBackground(engine, replace(video, num_inference_steps=10), conditioning)
    assert making.watcher.first_step.wait(PATIENCE_S)
    volume.let()
    making.end()
    assert isinstance(making.failure, ModelUnavailable)
    assert "volume" in making.failure.message
    assert (pixels(render(engine, video, conditioning)) == whole["text"]).all()


def test_memory_that_runs_out_while_loading_is_met_with_the_next_plan(
    whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume()
    volume.failures["transformer_2"] = torch.OutOfMemoryError("CUDA out of memory")
    engine = engine_reading(volume, engines, below=plan("swap"))
    rendering = render(engine, *MODES["text"])
    assert "swap" in rendering.parameters["memory_plan"]
    assert (pixels(rendering) == whole["text"]).all()


def test_a_file_that_cannot_be_used_is_told_before_anything_is_read(engines: list[Engine], tmp_path: Path) -> None:
    volume = Volume()
    engine = engine_reading(volume, engines)
    folder = engine.models._source.folder(demo.catalogue()[1], threading.Event(), "bf16")
    file = next((folder / "transformer_2").glob("*.safetensors"))
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    try:
        with pytest.raises(ModelUnavailable, match=r"transformer_2/.*it is truncated, or its header is damaged"):
            render(engine, *MODES["text"])
    finally:
        file.write_bytes(content)
    assert volume.order == []
    render(engine, *MODES["text"])


@pytest.mark.parametrize("closed", ["transformer_2", *slow("text_encoder", "transformer")])
def test_a_stop_ends_a_video_whatever_it_waits_for_and_the_weights_come_for_the_next(
    closed: str, whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume, stop = Volume(closed), Stop()
    engine = engine_reading(volume, engines)
    making = InBackground(engine, *MODES["text"], stop=stop)
    assert volume.asked[closed].wait(PATIENCE_S)
    stop.request(JobTimeout("too long"))
    making.end()
    assert isinstance(making.failure, JobTimeout)
    volume.let()
    assert (pixels(render(engine, *MODES["text"])) == whole["text"]).all()
    assert len(volume.order) == len(set(volume.order))  # nothing was read twice


def test_a_model_that_is_dropped_while_it_loads_ends_at_once(
    whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume("transformer")
    engine = engine_reading(volume, engines)
    engine.preload(["t2v"], Stop())
    assert volume.asked["transformer"].wait(PATIENCE_S)
    engine.models.drop("t2v")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]
    volume.let()
    assert (pixels(render(engine, *MODES["text"])) == whole["text"]).all()


def test_a_model_that_nobody_waits_for_makes_room_for_one_that_is_needed(
    whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    """Both do not fit: the one that is still loading is given up, and comes back when a job asks for it."""
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (8, 0))
    volume = Volume("i2v/transformer_2")
    engine = engine_reading(volume, engines, plan("resident", peak=gpu.budget_bytes), gpu=gpu)
    engine.preload(["i2v"], Stop())
    assert volume.asked["i2v/transformer_2"].wait(PATIENCE_S)
    render(engine, *MODES["text"])
    with pytest.raises(KeyError):
        engine.models["i2v"]
    volume.let()
    engine.models.drop("t2v")
    assert (pixels(render(engine, *MODES["image"])) == whole["image"]).all()


def test_two_models_that_fit_both_arrive_and_share_what_they_can(
    whole: dict[str, np.ndarray], engines: list[Engine]
) -> None:
    volume = Volume("i2v/transformer")
    engine = engine_reading(volume, engines)
    engine.preload(["i2v"], Stop())
    assert volume.asked["i2v/transformer"].wait(PATIENCE_S)
    making = InBackground(engine, *MODES["text"])
    volume.let()
    assert making.end().failure is None
    assert (pixels(render(engine, *MODES["image"])) == whole["image"]).all()
    assert engine.models["t2v"].components.shared is engine.models["i2v"].components.shared
    assert len(volume.order) == len(set(volume.order))
    shared = [name for name in volume.order if name.endswith(("text_encoder", "vae"))]
    assert len(shared) == 2


def test_preloading_returns_while_the_last_model_arrives(engines: list[Engine]) -> None:
    volume = Volume("t2v/transformer")
    engine = engine_reading(volume, engines)
    engine.preload(["i2v", "t2v"], Stop())
    assert engine.models["i2v"].is_whole
    assert not engine.models["t2v"].is_whole
    volume.let()


def test_preloading_can_be_stopped(engines: list[Engine]) -> None:
    volume, stop = Volume("i2v/transformer"), Stop()
    engine = engine_reading(volume, engines)
    threading.Timer(0.1, stop.request, (Cancelled(),)).start()
    with pytest.raises(Cancelled):
        engine.preload(["i2v", "t2v"], stop)


def test_the_share_of_the_weights_that_is_there_is_told(engines: list[Engine]) -> None:
    volume = Volume("text_encoder", "transformer")
    engine = engine_reading(volume, engines)
    making = InBackground(engine, *MODES["text"])
    # What is there before the waiting begins is no part of the share.
    until(lambda: any(part.stop is not None for each in engine.models._models.values() for part in each.needed_first()))
    volume.let("text_encoder")
    until(lambda: max(making.watcher.loaded) > 0.0)
    volume.let()
    told = making.end().watcher.loaded
    assert told == sorted(told)
    assert told[-1] <= 1.0


def test_the_first_video_says_how_the_model_came_and_later_ones_do_not(engines: list[Engine]) -> None:
    engine = engine_reading(Volume(), engines)
    video, conditioning = MODES["image"]
    told = render(engine, video, conditioning).cold_start
    assert told is not None
    assert list(told) == ["begun", "text_encoder", "vae", "transformer", "transformer_2", "waited"]
    assert 0 < told["begun"] <= told["text_encoder"] <= told["vae"] <= told["transformer"] <= told["transformer_2"]
    assert told["waited"] >= 0
    assert render(engine, image_request(seed=5), PICTURE).cold_start is None


def test_the_device_computes_nothing_with_weights_that_are_not_there(engines: list[Engine]) -> None:
    """Asking the components for an expert waits: whoever changes its weights, changes those that will be used."""
    volume = Volume("transformer_2")
    engine = engine_reading(volume, engines)
    engine.preload(["t2v"], Stop())
    components = engine.models["t2v"].components
    threading.Timer(0.1, volume.let).start()
    assert components.transformer_2 is not None
    assert not any(parameter.is_meta for parameter in components.transformer_2.parameters())
