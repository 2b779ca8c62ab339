"""The engine on the real Wan classes at a tiny size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.kits.videos import given
from worker.base.errors import Cancelled, Unsupported
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Rendering
from worker.engine.device import Planner
from worker.request import CATALOGUE, ModelSpec, VideoRequest
from worker.request.parse import parse
from worker.weights.sources import demo

PLANNER = Planner.here(Settings())
PICTURE = Conditioning(image=Image.linear_gradient("L").resize((64, 64)).convert("RGB"))


class Quiet:
    def __init__(self) -> None:
        self.generated: list[float] = []

    def loading(self, fraction: float) -> None: ...

    def generating(self, fraction: float) -> None:
        self.generated.append(fraction)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    source = demo.DemoSource()
    yield Engine(source, demo.catalogue(), PLANNER)
    source.close()


def request(**fields: Any) -> VideoRequest:
    """A request of 64 x 64 pixels: smaller than a caller may ask for, enough for the engine."""
    video = parse(
        {"prompt": "a cat", "seed": 3, "num_frames": 5, "num_inference_steps": 2, **fields}, default_job_id="j"
    )
    return replace(video.videos[0], width=64, height=64)


def image_request(**fields: Any) -> VideoRequest:
    return request(reference_image_url="https://example.com/a.png", **fields)


def render(
    engine: Engine, video: VideoRequest, conditioning: Conditioning = PICTURE, stop: Stop | None = None
) -> Rendering:
    return engine.generate(
        given(engine, video, conditioning), watcher=Quiet(), stop=stop if stop is not None else Stop()
    )


def pixels(rendering: Rendering) -> np.ndarray:
    return np.stack(list(rendering.frames()))


class ExpertCounter:
    """Counts the forward passes of each expert and the timesteps at which they ran."""

    def __init__(self, engine: Engine, key: str) -> None:
        parts = engine.models[key].components
        self.high: list[float] = []
        self.low: list[float] = []
        self._hooks = [
            parts.transformer.register_forward_pre_hook(self._into(self.high), with_kwargs=True),
        ]
        if parts.transformer_2 is not None:
            self._hooks.append(parts.transformer_2.register_forward_pre_hook(self._into(self.low), with_kwargs=True))

    def _into(self, kept: list[float]) -> Any:
        def hook(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
            kept.append(float(kwargs["timestep"].flatten()[-1]))

        return hook

    def __enter__(self) -> ExpertCounter:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()


@pytest.mark.parametrize(
    ("fields", "key", "boundary", "split"),
    [
        # Source of the figures: Wan's own sampling at its official shift, 40 steps.
        ({"flow_shift": 12.0}, "t2v", 875.0, (26, 14)),
        ({}, "t2v", 875.0, (26, 14)),
        ({"flow_shift": 3.0}, "t2v", 875.0, (13, 27)),
        ({"reference_image_url": "https://example.com/a.png"}, "i2v", 900.0, None),
    ],
)
def test_each_expert_runs_on_its_side_of_the_boundary(
    engine: Engine, fields: dict[str, Any], key: str, boundary: float, split: tuple[int, int] | None
) -> None:
    video = request(num_inference_steps=40, guidance_scale=1.0, **fields)
    render(engine, request(**fields))
    with ExpertCounter(engine, key) as ran:
        render(engine, video)
    assert len(ran.high) + len(ran.low) == 40
    assert min(ran.high) >= boundary > max(ran.low)
    if split is not None:
        assert (len(ran.high), len(ran.low)) == split


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


def test_an_unguided_step_counts_the_prompt_alone(engine: Engine) -> None:
    """As guidance at scale 1 does, by way of a second pass."""
    video = request(num_inference_steps=6, guidance_scale=4.0)
    exact = pixels(render(engine, replace(video, guidance_scale_2=1.0))).astype(int)
    by_two_passes = pixels(render(engine, replace(video, guidance_scale_2=1.0 + 1e-6))).astype(int)
    assert np.abs(exact - by_two_passes).max() <= 1


def test_the_low_noise_experts_guidance_is_applied(engine: Engine) -> None:
    video = request(num_inference_steps=6, guidance_scale=1.0)
    plain = pixels(render(engine, replace(video, guidance_scale_2=1.0)))
    guided = pixels(render(engine, replace(video, guidance_scale_2=8.0)))
    assert (plain != guided).any()


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


def test_the_first_frame_follows_the_reference_image(engine: Engine) -> None:
    other = Conditioning(image=Image.new("RGB", (64, 64), "red"))
    assert (pixels(render(engine, image_request())) != pixels(render(engine, image_request(), other))).any()


def test_every_step_is_told_and_a_stop_ends_the_run_within_one(engine: Engine) -> None:
    watcher, stop = Quiet(), Stop()

    def after_two(fraction: float) -> None:
        watcher.generated.append(fraction)
        if fraction >= 0.2:
            stop.request(Cancelled())

    class Stopping(Quiet):
        def generating(self, fraction: float) -> None:
            after_two(fraction)

    video = request(num_inference_steps=10)
    exact = pixels(render(engine, video))
    with pytest.raises(Cancelled):
        engine.generate(given(engine, video, PICTURE), watcher=Stopping(), stop=stop)
    assert watcher.generated == pytest.approx([0.0, 0.1, 0.2])
    assert (pixels(render(engine, video)) == exact).all()


def test_all_steps_are_told(engine: Engine) -> None:
    watcher = Quiet()
    video = request(num_inference_steps=4)
    engine.generate(given(engine, video, PICTURE), watcher=watcher, stop=Stop())
    assert watcher.generated == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])


def test_a_stop_during_decoding_releases_the_engine(engine: Engine) -> None:
    stop = Stop()
    frames = render(engine, request(num_frames=17), stop=stop).frames()
    next(frames)
    stop.request(Cancelled())
    with pytest.raises(Cancelled):
        list(frames)
    assert len(pixels(render(engine, request()))) == 5


def test_latents_that_are_not_numbers_never_become_a_video() -> None:
    source = demo.DemoSource()
    broken = Engine(source, demo.catalogue(), PLANNER)
    broken.preload(["t2v"], Stop())
    with torch.no_grad():
        broken.models["t2v"].components.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        render(broken, request())
    source.close()


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
    source = demo.DemoSource()
    engine = Engine(source, demo.catalogue(), PLANNER)
    stop = Stop()

    class StoppingSource:
        def folder(self, spec: ModelSpec, event: Any, prepared: str) -> Any:
            folder = source.folder(spec, event, prepared)
            if not stop.requested:
                stop.request(Cancelled())
            return folder

    engine.models._source = StoppingSource()  # type: ignore[assignment]
    with pytest.raises(Cancelled):
        render(engine, request(), stop=stop)
    with pytest.raises(KeyError):
        engine.models["t2v"]
    assert len(pixels(render(engine, request()))) == 5
    source.close()
