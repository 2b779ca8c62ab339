"""A model is used while its last parts are still read, under every plan."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kits.engine_kit import MODES, PICTURE, PLANS, image_request, pixels, plan, render
from tests.kits.loading_kit import PATIENCE_S, Frames, InBackground, Reading
from tests.kits.loopback import wait_until
from tests.kits.slow import slow
from worker.base.stop import Stop
from worker.engine.models.arrivals import LAYERS


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
    name: str, mode: str, whole: Frames, reading: Reading
) -> None:
    engine, volume = reading("transformer_2", fixed=PLANS.get(name, plan("resident")))
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
    name: str, whole: Frames, reading: Reading
) -> None:
    engine, volume = reading("transformer_2", fixed=PLANS[name])
    making = InBackground(engine, *MODES["text"])
    assert volume.asked["transformer_2"].wait(PATIENCE_S)
    assert not making.watcher.generated
    volume.let()
    assert (making.end().frames == whole["text"]).all()


@pytest.mark.parametrize("precision", ["fp8", *slow("int8")])
def test_each_expert_is_quantised_when_it_is_there(precision: Any, reading: Reading) -> None:
    engine, _ = reading(fixed=plan("swap", precision))
    frames = pixels(render(engine, *MODES["text"]))
    plain, _ = reading(fixed=plan("swap", precision))
    plain.models._overlap = False
    assert (frames == pixels(render(plain, *MODES["text"]))).all()


def test_layers_are_not_replaced_while_a_lora_is_put_on(reading: Reading) -> None:
    engine, _ = reading(fixed=plan("swap", "int8"))
    with LAYERS:
        engine.preload(["t2v"], Stop())
        expert = engine.models["t2v"].components.own[0]
        while expert.read_bytes < expert.nbytes:
            pass
        assert not expert.there
    expert.wait()
    assert expert.module.blocks[0].attn1.to_q.weight.dtype == torch.int8


def test_what_a_video_needs_first_is_read_first(reading: Reading) -> None:
    for key, mode, order in (
        ("t2v", "text", ["text_encoder", "transformer", "vae", "transformer_2"]),
        ("i2v", "image", ["text_encoder", "vae", "transformer", "transformer_2"]),
        ("5b", "5b text", ["text_encoder", "transformer", "vae"]),
    ):
        engine, volume = reading()
        list(render(engine, *MODES[mode]).frames())
        assert volume.order == [f"{key}/{name}" for name in order]


def test_the_vae_of_a_text_to_video_model_is_not_waited_for_before_the_first_step(reading: Reading) -> None:
    engine, volume = reading("vae")
    video, conditioning = MODES["text"]
    making = InBackground(engine, replace(video, num_inference_steps=10), conditioning)
    assert making.watcher.first_step.wait(PATIENCE_S)
    volume.let()
    assert making.end().failure is None


def test_two_models_that_fit_both_arrive_and_share_what_they_can(whole: Frames, reading: Reading) -> None:
    engine, volume = reading("i2v/transformer")
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


def test_preloading_returns_while_the_last_model_arrives(reading: Reading) -> None:
    engine, volume = reading("t2v/transformer")
    engine.preload(["i2v", "t2v"], Stop())
    assert engine.models["i2v"].is_whole
    assert not engine.models["t2v"].is_whole
    volume.let()


def test_the_share_of_the_weights_that_is_there_is_told(reading: Reading) -> None:
    engine, volume = reading("text_encoder", "transformer")
    making = InBackground(engine, *MODES["text"])
    # What is there before the waiting begins is no part of the share.
    wait_until(
        lambda: any(part.stop is not None for each in engine.models._models.values() for part in each.needed_first()),
        PATIENCE_S,
    )
    volume.let("text_encoder")
    wait_until(lambda: max(making.watcher.loaded) > 0.0, PATIENCE_S)
    volume.let()
    told = making.end().watcher.loaded
    assert told == sorted(told)
    assert told[-1] <= 1.0


def test_the_first_video_says_how_the_model_came_and_later_ones_do_not(reading: Reading) -> None:
    engine, _ = reading()
    video, conditioning = MODES["image"]
    told = render(engine, video, conditioning).cold_start
    assert told is not None
    assert list(told) == ["begun", "text_encoder", "vae", "transformer", "transformer_2", "waited"]
    assert 0 < told["begun"] <= told["text_encoder"] <= told["vae"] <= told["transformer"] <= told["transformer_2"]
    assert told["waited"] >= 0
    assert render(engine, image_request(seed=5), PICTURE).cold_start is None


def test_the_device_computes_nothing_with_weights_that_are_not_there(reading: Reading) -> None:
    """Asking the components for an expert waits: whoever changes its weights, changes those that will be used."""
    engine, volume = reading("transformer_2")
    engine.preload(["t2v"], Stop())
    components = engine.models["t2v"].components
    threading.Timer(0.1, volume.let).start()
    assert components.transformer_2 is not None
    assert not any(parameter.is_meta for parameter in components.transformer_2.parameters())
