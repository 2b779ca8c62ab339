"""A model whose loading fails, is stopped, or runs out of memory: nothing is read twice, and the next video is made."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.kits.engine_kit import MODES, PLANS, pixels, plan, render
from tests.kits.loading_kit import PATIENCE_S, Frames, InBackground, Reading
from tests.kits.slow import slow
from worker.base.errors import Cancelled, JobTimeout, ModelUnavailable
from worker.base.stop import Stop
from worker.request.plan import Gpu
from worker.weights.sources import demo


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
def test_out_of_memory_reads_nothing_again(below: str, arriving: bool, whole: Frames, reading: Reading) -> None:
    """The next lower plan needs no other bytes, whether or not the low-noise expert is still being read."""
    engine, volume = reading("transformer_2", fixed=plan("resident", text_encoder="resident"), below=PLANS[below])
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
    whole: Frames, reading: Reading
) -> None:
    engine, volume = reading("transformer_2")
    volume.failures["transformer_2"] = OSError(5, "Input/output error")
    video, conditioning = MODES["text"]
    making = InBackground(engine, replace(video, num_inference_steps=10), conditioning)
    assert making.watcher.first_step.wait(PATIENCE_S)
    volume.let()
    making.end()
    assert isinstance(making.failure, ModelUnavailable)
    assert "volume" in making.failure.message
    assert (pixels(render(engine, video, conditioning)) == whole["text"]).all()


def test_memory_that_runs_out_while_loading_is_met_with_the_next_plan(whole: Frames, reading: Reading) -> None:
    engine, volume = reading(below=plan("swap"))
    volume.failures["transformer_2"] = torch.OutOfMemoryError("CUDA out of memory")
    rendering = render(engine, *MODES["text"])
    assert "swap" in rendering.parameters["memory_plan"]
    assert (pixels(rendering) == whole["text"]).all()


def test_a_file_that_cannot_be_used_is_told_before_anything_is_read(reading: Reading, tmp_path: Path) -> None:
    engine, volume = reading()
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
    closed: str, whole: Frames, reading: Reading
) -> None:
    engine, volume = reading(closed)
    stop = Stop()
    making = InBackground(engine, *MODES["text"], stop=stop)
    assert volume.asked[closed].wait(PATIENCE_S)
    stop.request(JobTimeout("too long"))
    making.end()
    assert isinstance(making.failure, JobTimeout)
    volume.let()
    assert (pixels(render(engine, *MODES["text"])) == whole["text"]).all()
    assert len(volume.order) == len(set(volume.order))  # nothing was read twice


def test_a_model_that_is_dropped_while_it_loads_ends_at_once(whole: Frames, reading: Reading) -> None:
    engine, volume = reading("transformer")
    engine.preload(["t2v"], Stop())
    assert volume.asked["transformer"].wait(PATIENCE_S)
    engine.models.drop("t2v")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]
    volume.let()
    assert (pixels(render(engine, *MODES["text"])) == whole["text"]).all()


def test_a_model_that_nobody_waits_for_makes_room_for_one_that_is_needed(whole: Frames, reading: Reading) -> None:
    """Both do not fit: the one that is still loading is given up, and comes back when a job asks for it."""
    gpu = Gpu("tiny", int((1_000_000 + 600_000_000) / 0.97), (8, 0))
    engine, volume = reading("i2v/transformer_2", fixed=plan("resident", peak=gpu.budget_bytes), gpu=gpu)
    engine.preload(["i2v"], Stop())
    assert volume.asked["i2v/transformer_2"].wait(PATIENCE_S)
    render(engine, *MODES["text"])
    with pytest.raises(KeyError):
        engine.models["i2v"]
    volume.let()
    engine.models.drop("t2v")
    assert (pixels(render(engine, *MODES["image"])) == whole["image"]).all()


def test_preloading_can_be_stopped(reading: Reading) -> None:
    engine, _ = reading("i2v/transformer")
    stop = Stop()
    threading.Timer(0.1, stop.request, (Cancelled(),)).start()
    with pytest.raises(Cancelled):
        engine.preload(["i2v", "t2v"], stop)
