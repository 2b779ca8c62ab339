"""The engine on the real Wan classes at a tiny size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kits.engine_kit import (
    PLANNER,
    ExpertCounter,
    Quiet,
    StopsAt,
    demo_source,
    image_request,
    pixels,
    render,
    request,
)
from worker.base.errors import Cancelled, Unsupported
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, decode
from worker.engine.modes import schedules
from worker.request import CATALOGUE, ModelSpec
from worker.weights.sources import demo


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(demo_source(), demo.catalogue(), PLANNER)


@pytest.mark.parametrize(
    ("fields", "key", "split"),
    [
        # Source of the figures: Wan's own sampling at its official shift, 40 steps.
        ({"flow_shift": 12.0}, "t2v", (26, 14)),
        ({}, "t2v", (26, 14)),
        ({"flow_shift": 3.0}, "t2v", (13, 27)),
        ({"reference_image_url": "https://example.com/a.png"}, "i2v", (15, 25)),
    ],
)
def test_each_expert_has_the_steps_on_its_side_of_the_boundary(
    engine: Engine, fields: dict[str, Any], key: str, split: tuple[int, int]
) -> None:
    """Counted on the schedule; the next test sees which expert runs at which timestep."""
    engine.preload([key], Stop())
    components = engine.models[key].components
    spec = next(spec for spec in demo.catalogue() if spec.key == key)
    scheduler = schedules.choose(request(**fields), spec, components.scheduler_config).scheduler
    scheduler.set_timesteps(40)
    assert components.boundary_ratio == spec.boundary_ratio == {"t2v": 0.875, "i2v": 0.9}[key]
    high = int((scheduler.timesteps >= components.boundary_ratio * 1000).sum())
    assert (high, 40 - high) == split


@pytest.mark.parametrize(("key", "boundary"), [("t2v", 875.0), ("i2v", 900.0)])
def test_each_expert_runs_on_its_side_of_the_boundary(engine: Engine, key: str, boundary: float) -> None:
    make = request if key == "t2v" else image_request
    video = make(num_inference_steps=6, guidance_scale=1.0)
    render(engine, video)
    with ExpertCounter(engine, key) as ran:
        render(engine, video)
    assert len(ran.high) + len(ran.low) == 6
    assert min(ran.high) >= boundary > max(ran.low)


@pytest.mark.parametrize(
    ("guidance_scale", "guidance_scale_2", "passes"),
    [(1.0, None, (1, 1)), (5.0, None, (2, 2)), (1.0, 3.0, (1, 2)), (3.0, 1.0, (2, 1))],
)
def test_guidance_runs_on_the_expert_that_asks_for_it(
    engine: Engine, guidance_scale: float, guidance_scale_2: float | None, passes: tuple[int, int]
) -> None:
    video = request(num_inference_steps=6, guidance_scale=guidance_scale, guidance_scale_2=guidance_scale_2)
    render(engine, video)
    with ExpertCounter(engine, "t2v") as ran:
        render(engine, video)
    assert (len(ran.high), len(ran.low)) == (4 * passes[0], 2 * passes[1])


@pytest.mark.parametrize(("until", "passes"), [(0, (4, 2)), (0.25, (6, 2)), (0.5, (7, 2)), (0.75, (8, 3)), (1, (8, 4))])
def test_guidance_ends_behind_the_share_of_the_steps_that_is_asked_for(
    engine: Engine, until: float, passes: tuple[int, int]
) -> None:
    video = request(num_inference_steps=6, guidance_scale=5.0, guidance_until=until)
    with ExpertCounter(engine, "t2v") as ran:
        render(engine, video)
    assert (len(ran.high), len(ran.low)) == passes


def test_guidance_that_does_not_end_changes_nothing_and_one_that_does_changes_the_picture(engine: Engine) -> None:
    whole = pixels(render(engine, request(num_inference_steps=6, guidance_scale=5.0)))
    same = pixels(render(engine, request(num_inference_steps=6, guidance_scale=5.0, guidance_until=1.0)))
    half = pixels(render(engine, request(num_inference_steps=6, guidance_scale=5.0, guidance_until=0.5)))
    assert np.array_equal(whole, same)
    assert not np.array_equal(whole, half)


def test_an_unguided_step_counts_the_prompt_alone(engine: Engine) -> None:
    """As guidance at scale 1 does, by way of a second pass."""
    video = request(num_inference_steps=6, guidance_scale=4.0)
    exact = pixels(render(engine, replace(video, guidance_scale_2=1.0))).astype(int)
    by_two_passes = pixels(render(engine, replace(video, guidance_scale_2=1.0 + 1e-6))).astype(int)
    assert np.abs(exact - by_two_passes).max() <= 1


def test_the_low_noise_experts_guidance_is_applied_by_its_amount(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three steps the last is the low-noise expert's: its latents are a straight line over its guidance scale."""

    def latents(scale: float) -> torch.Tensor:
        video = request(num_inference_steps=3, guidance_scale=1.0, guidance_scale_2=scale)
        caught: list[torch.Tensor] = []

        def catching(_vae: object, latents: torch.Tensor, **_: object) -> Iterator[np.ndarray]:
            caught.append(latents)
            yield from ()

        with monkeypatch.context() as patched:
            patched.setattr(decode, "frames", catching)
            list(render(engine, video).frames())
        return caught[0]

    at = {scale: latents(scale) for scale in (1.0, 2.0, 5.0)}
    step = at[2.0] - at[1.0]
    assert float(step.abs().max()) > 1e-4
    torch.testing.assert_close(at[5.0] - at[1.0], 4 * step, rtol=1e-3, atol=1e-4)


def test_turbo_runs_at_the_four_trained_timesteps_two_on_each_expert(engine: Engine) -> None:
    for key, video in (("t2v", request(quality_preset="turbo")), ("i2v", image_request(quality_preset="turbo"))):
        render(engine, video)
        with ExpertCounter(engine, key) as ran:
            render(engine, video)
        assert ran.high == pytest.approx([1000.0, 937.5], abs=0.05)
        assert ran.low == pytest.approx([833.3, 625.0], abs=0.05)


def test_turbo_is_unsupported_without_distilled_weights(engine: Engine) -> None:
    with pytest.raises(Unsupported) as caught:
        engine.video(request(quality_preset="turbo", model="5b"))
    assert caught.value.path == "quality_preset"


def test_frames_have_the_size_and_number_that_was_asked_for(engine: Engine) -> None:
    for video in (request(), image_request(), request(model="5b"), image_request(model="5b")):
        rendering = render(engine, video)
        frames = pixels(rendering)
        assert frames.shape == (5, 64, 64, 3)
        assert frames.dtype == np.uint8


def test_equal_seeds_give_equal_frames(engine: Engine) -> None:
    assert (pixels(render(engine, request())) == pixels(render(engine, request()))).all()
    assert (pixels(render(engine, request())) != pixels(render(engine, request(seed=4)))).any()


def test_noise_depends_on_the_lower_32_bits_of_a_seed(engine: Engine) -> None:
    """Torch's generator for the CPU, a Mersenne Twister, takes no more; results report the seed whole all the same."""
    frames = [pixels(render(engine, request(seed=seed))) for seed in (3, 3 + 2**32, 3 + 2**31)]
    assert (frames[0] == frames[1]).all()
    assert not (frames[0] == frames[2]).all()


def test_the_reference_image_reaches_the_frames(engine: Engine) -> None:
    """That they follow it is for a trained model to show: tests/flow/test_quality."""
    other = Conditioning(image=Image.new("RGB", (64, 64), "red"))
    assert (pixels(render(engine, image_request())) != pixels(render(engine, image_request(), other))).any()


def test_every_step_is_told_and_a_stop_ends_the_run_within_one(engine: Engine) -> None:
    stop = Stop()
    watcher = StopsAt(stop, 0.2)
    video = request(num_inference_steps=10)
    exact = pixels(render(engine, video))
    with pytest.raises(Cancelled):
        render(engine, video, stop=stop, watcher=watcher)
    assert watcher.generated == pytest.approx([0.0, 0.1, 0.2])
    assert (pixels(render(engine, video)) == exact).all()


def test_all_steps_are_told(engine: Engine) -> None:
    watcher = Quiet()
    video = request(num_inference_steps=4)
    render(engine, video, watcher=watcher)
    assert watcher.generated == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_prompt_is_reported_as_cut_from_its_first_token_beyond_the_encoders_limit(
    engine: Engine, beyond: int
) -> None:
    render(engine, request())
    tokenizer = engine.models["t2v"].components.shared.tokenizer
    prompt = "a"
    while len(tokenizer(prompt).input_ids) < 512 + beyond:
        prompt += " a" if len(tokenizer(f"{prompt} a").input_ids) <= 512 + beyond else "a"
    assert len(tokenizer(prompt).input_ids) == 512 + beyond
    warnings = render(engine, request(prompt=prompt)).warnings
    assert warnings == (f"prompt: {512 + beyond} tokens; the text encoder reads the first 512",) * beyond


def test_frames_that_are_closed_early_release_the_engine(engine: Engine) -> None:
    frames = render(engine, request(num_frames=17)).frames()
    next(frames)
    frames.close()
    assert len(pixels(render(engine, request()))) == 5


def test_a_stop_during_decoding_releases_the_engine(engine: Engine) -> None:
    stop = Stop()
    frames = render(engine, request(num_frames=17), stop=stop).frames()
    next(frames)
    stop.request(Cancelled())
    with pytest.raises(Cancelled):
        list(frames)
    assert len(pixels(render(engine, request()))) == 5


def test_latents_that_are_not_numbers_never_become_a_video() -> None:
    broken = Engine(demo_source(), demo.catalogue(), PLANNER)
    broken.preload(["t2v"], Stop())
    with torch.no_grad():
        broken.models["t2v"].components.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        render(broken, request())


def test_the_two_a14b_models_share_text_encoder_and_vae(engine: Engine) -> None:
    engine.preload(["i2v", "t2v", "5b"], Stop())
    parts = {key: engine.models[key].components for key in ("i2v", "t2v", "5b")}
    assert parts["i2v"].shared is parts["t2v"].shared
    assert parts["5b"].shared is not parts["t2v"].shared
    assert parts["i2v"].transformer is not parts["t2v"].transformer


def test_repeated_prompts_are_encoded_once(engine: Engine) -> None:
    video = request(prompt="never seen before")
    render(engine, video)
    encoder = engine.models["t2v"].components.shared.text_encoder
    calls: list[int] = []
    hook = encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        render(engine, video)
        assert calls == []
        render(engine, request(prompt="something new"))
        assert calls == [1]
    finally:
        hook.remove()


def test_a_mode_that_a_model_does_not_have_is_unsupported(engine: Engine) -> None:
    video = image_request(model="5b", last_image_url="https://example.com/b.png")
    with pytest.raises(Unsupported, match="5b does not serve first_last_frame"):
        engine.video(video)


def test_every_demo_model_is_made_in_seconds_and_says_that_it_is_one() -> None:
    assert {spec.version for spec in demo.catalogue()} == {"demo"}
    by_key: dict[str, ModelSpec] = {spec.key: spec for spec in demo.catalogue()}
    assert set(by_key) == {"i2v", "t2v", "5b"}
    for spec in CATALOGUE:
        assert by_key[spec.key].boundary_ratio == spec.boundary_ratio
        assert by_key[spec.key].size_stride == spec.size_stride


def test_a_stop_while_a_model_is_fetched_ends_it_and_the_next_load_works() -> None:
    engine, stop = Engine(demo_source(), demo.catalogue(), PLANNER), Stop()

    class StoppingSource:
        def folder(self, spec: ModelSpec, event: Any, prepared: str) -> Any:
            folder = demo_source().folder(spec, event, prepared)
            if not stop.requested:
                stop.request(Cancelled())
            return folder

    engine.models._source = StoppingSource()  # type: ignore[assignment]
    with pytest.raises(Cancelled):
        render(engine, request(), stop=stop)
    with pytest.raises(KeyError):
        engine.models["t2v"]
    assert len(pixels(render(engine, request()))) == 5
