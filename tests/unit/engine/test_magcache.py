"""MagCache in the step cache on the real classes at a small size: its curves, its rule, and where it steps aside."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.kits import lora_kit
from tests.kits.engine_kit import (
    PICTURE,
    VIDEO,
    FixedPlanner,
    demo_source,
    image_request,
    pixels,
    plan,
    render,
    request,
)
from worker.base.settings import Settings
from worker.base.stop import Stop
from worker.engine import Conditioning, Engine, Rendering
from worker.engine.device import planner_for
from worker.engine.techniques import magcache, step_cache
from worker.engine.techniques.magcache import Curve, Curves, Rule
from worker.request import ModelSpec, VideoRequest
from worker.weights.loras import LoraFile
from worker.weights.sources import demo

STEPS = 12
# A tenth shorter at each step of 100.
EVEN = Curve(timesteps=tuple(float(t) for t in range(1000, -1, -100)), logs=tuple(n * math.log(0.9) for n in range(11)))
FLAT = Curve(timesteps=(1000.0, 0.0), logs=(0.0, 0.0))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(model_cache_dir=tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Engine:
    made = Engine(demo_source(3), demo.catalogue(), planner_for(settings))
    made.preload(["i2v", "t2v"], Stop())
    return made


def calibrated(engine: Engine, video: VideoRequest, conditioning: Conditioning = PICTURE) -> Rendering:
    with engine.techniques.calibrating():
        return render(engine, video, conditioning)


@pytest.fixture(scope="module")
def measured(engine: Engine) -> Rendering:
    return calibrated(engine, request(num_inference_steps=STEPS))


def left_out(rule: Rule, timesteps: tuple[float, ...] = EVEN.timesteps) -> list[int]:
    return [number for number, each in enumerate(timesteps) if rule.leaves_out(each, allowed=True)]


@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        (0.0, []),
        (0.099, []),
        (0.101, [1, 3, 5, 7, 9]),
        (0.28, [1, 3, 5, 7, 9]),  # 0.1, and 0.19 more
        (0.30, [1, 2, 4, 5, 7, 8, 10]),
    ],
)
def test_errors_add_up_until_a_step_is_computed(limit: float, steps: list[int]) -> None:
    assert left_out(Rule(EVEN, limit)) == steps


def test_no_more_than_four_in_a_row_and_none_that_must_not() -> None:
    assert left_out(Rule(FLAT, 0.001)) == [1, 2, 3, 4, 6, 7, 8, 9]
    rule = Rule(FLAT, 0.001)
    assert [rule.leaves_out(t, allowed=t != 700.0) for t in EVEN.timesteps[:6]] == [
        False,
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_limit_of_nothing_leaves_nothing_out_of_a_flat_curve() -> None:
    assert left_out(Rule(FLAT, 0.0)) == []


def test_a_curve_serves_every_number_of_steps() -> None:
    """Half the distance, half the change: twice as many steps in a row stay below a limit."""
    assert EVEN.ratio(400.0, 600.0) == pytest.approx(0.81)
    assert EVEN.ratio(550.0, 600.0) == pytest.approx(0.9**0.5)
    fine = tuple(float(t) for t in range(1000, -1, -50))
    assert left_out(Rule(EVEN, 0.101), fine) == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    assert left_out(Rule(EVEN, 0.16), fine)[:4] == [1, 2, 4, 5]


def test_what_was_not_measured_is_computed() -> None:
    half = Curve(timesteps=(800.0, 400.0), logs=(0.0, 0.0))
    assert left_out(Rule(half, 1e9)) == [3, 4, 5, 6]  # at 700 to 400; 800 has nothing measured before it


def test_a_video_is_measured_as_it_would_be_made(engine: Engine, settings: Settings, measured: Rendering) -> None:
    """The same bits; curves of both experts, with and without the prompt, over all their steps."""
    assert (pixels(measured) == pixels(render(engine, request(num_inference_steps=STEPS)))).all()
    assert measured.warnings == ()
    spec = engine.models["t2v"].spec
    assert measured.parameters["step_cache_curves"] == str(magcache.path(settings, spec))
    curves = magcache.stored(settings, spec)
    assert curves is not None
    high, low = curves.experts
    assert [len(curve.timesteps) for curve in (*high, *low)] == 2 * [len(high[0].timesteps)] + 2 * [
        STEPS - len(high[0].timesteps)
    ]
    assert high[0] != high[1]
    for curve in (*high, *low):
        assert curve.logs[0] == 0.0
        assert list(curve.timesteps) == sorted(curve.timesteps, reverse=True)


@pytest.mark.usefixtures("measured")
def test_the_curves_decide_about_fast_videos(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cache, "LIMITS", {"fast": 1e9})
    video = request(num_inference_steps=STEPS)
    exact = pixels(render(engine, video))
    cached = [render(engine, replace(video, step_cache="fast")) for _ in range(2)]
    for each in cached:
        assert (each.parameters["step_cache"], each.parameters["step_cache_rule"]) == ("fast", "magcache")
        assert each.parameters["step_cache_share"] > 0.4
        assert each.warnings == ()
    frames = [pixels(each) for each in cached]
    assert (frames[0] == frames[1]).all()  # no state of one run reaches the next
    assert (frames[0] != exact).any()
    assert not any(expert.is_cache_enabled for expert in engine.models["t2v"].experts)
    assert (pixels(render(engine, video)) == exact).all()
    balanced = render(engine, replace(video, step_cache="balanced"))
    assert balanced.parameters["step_cache_rule"] == "first_block"


@pytest.mark.usefixtures("measured")
def test_a_limit_of_nothing_makes_the_exact_video(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_cache, "LIMITS", {"fast": 0.0})
    video = request(num_inference_steps=STEPS)
    cached = render(engine, replace(video, step_cache="fast"))
    assert (cached.parameters["step_cache_rule"], cached.parameters["step_cache_share"]) == ("magcache", 0.0)
    assert (pixels(cached) == pixels(render(engine, video))).all()


@pytest.mark.usefixtures("measured")
def test_one_pass_of_a_step_may_be_left_out_without_the_other(engine: Engine, settings: Settings) -> None:
    spec = engine.models["t2v"].spec
    before = magcache.stored(settings, spec)
    assert before is not None
    steep = Curve(timesteps=(1000.0, 0.0), logs=(0.0, 1e3))
    magcache.store(settings, spec, Curves(experts=((FLAT, steep), (steep, steep))))
    try:
        rendering = render(engine, request(num_inference_steps=STEPS, step_cache="fast"))
    finally:
        magcache.store(settings, spec, before)
    high = len(before.experts[0][0].timesteps)
    # Of the high expert's passes with the prompt all but the first and each fifth.
    wanted = len(left_out(Rule(FLAT, 1.0), tuple(map(float, range(high, 0, -1)))))
    assert rendering.parameters["step_cache_share"] == round(wanted / (2 * STEPS), 3)


@pytest.mark.usefixtures("measured")
def test_with_loras_the_first_block_decides(engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = lora_kit.factors(engine.models["t2v"].components.transformer, "blocks.0.attn1.to_q")
    file = LoraFile(lora_kit.saved(tmp_path, lora_kit.as_diffusers(pairs)), "", "a.safetensors")
    video = request(num_inference_steps=STEPS, step_cache="fast", loras=[{"source": "a.safetensors", "scale": 1.0}])
    caplog.set_level("INFO")
    rendering = render(engine, video, loras=(file,))
    assert rendering.parameters["step_cache_rule"] == "first_block"
    assert "by the first block, not by MagCache: with LoRAs" in caplog.text


def test_a_model_without_curves_goes_by_the_first_block(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rendering = render(engine, image_request(num_inference_steps=4, step_cache="fast"))
    assert rendering.parameters["step_cache_rule"] == "first_block"
    assert "this model has no curves" in caplog.text


def test_curves_that_cannot_be_read_are_none(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    spec: ModelSpec = demo.catalogue()[2]
    assert magcache.stored(settings, spec) is None
    assert caplog.text == ""
    target = magcache.store(settings, spec, Curves(experts=((EVEN, FLAT),)))
    assert magcache.stored(settings, spec) == Curves(experts=((EVEN, FLAT),))
    target.write_text('{"experts": [[1, 2]]}')
    assert magcache.stored(settings, spec) is None
    assert "cannot be read (ValidationError)" in caplog.text


def test_curves_are_of_one_model(settings: Settings) -> None:
    specs = demo.catalogue()
    other = settings.model_copy(update={"t2v_model_id": "/models/mine@v2"})
    paths = [magcache.path(settings, spec) for spec in specs]
    paths += [magcache.path(other, spec) for spec in specs if spec.base == "t2v"]
    assert len(set(paths)) == len(paths)
    assert all(path.parent == settings.model_cache_dir / "step-cache" for path in paths)  # type: ignore[operator]


UNFIT: dict[str, tuple[VideoRequest, Conditioning]] = {
    "unguided": (request(num_inference_steps=4, guidance_scale=1.0), PICTURE),
    "turbo": (request(quality_preset="turbo"), PICTURE),
    "of low noise alone": (
        request(num_inference_steps=4, reference_video_url="https://example.com/a.mp4", strength=0.3),
        VIDEO,
    ),
    "a preview alone": (request(num_inference_steps=8, preview="strip", preview_only=True), PICTURE),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case == "a preview alone" else ()) for case in UNFIT]
)
def test_no_curves_are_stored_of_a_video_that_does_not_show_them(
    case: str, engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(magcache, "store", never)
    rendering = calibrated(engine, *UNFIT[case])
    assert rendering.warnings[-1] == f"no curves were stored: {magcache.NEEDS}"
    assert "step_cache_curves" not in rendering.parameters


def test_a_volume_that_takes_no_curves_is_reported(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(magcache, "store", full)
    rendering = calibrated(engine, request(num_inference_steps=4))
    assert rendering.warnings == ("the curves could not be stored: No space left on device",)


@pytest.mark.slow
@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("residency", ["swap", "group_offload", "sequential"])
def test_the_curves_and_their_videos_are_the_same_under_every_plan(
    engine: Engine, settings: Settings, tmp_path: Path, residency: Any
) -> None:
    video = request(num_inference_steps=STEPS, step_cache="fast")
    other_settings = settings.model_copy(update={"model_cache_dir": tmp_path})
    planner = FixedPlanner(None, other_settings, None, plan(residency), None)
    other = Engine(demo_source(3), demo.catalogue(), planner)
    other.preload(["t2v"], Stop())
    calibrated(other, replace(video, step_cache="off"))
    spec = other.models["t2v"].spec
    assert magcache.stored(other_settings, spec) == magcache.stored(settings, spec)
    cached = render(other, video)
    assert cached.parameters["step_cache_rule"] == "magcache"
    assert (pixels(cached) == pixels(render(engine, video))).all()
