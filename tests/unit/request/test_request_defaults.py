"""Defaults, presets and corrections of a video request, as sections 1 and 4 of the public contract have them."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import job_of, video_of, video_problems
from worker.request import CATALOGUE, Limits, Output
from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT
from worker.request.parse import DEFAULT_LIMITS
from worker.request.settle import HYBRID, PRESETS
from worker.request.values import Previews

EVENTS = frozenset({"progress", "completed", "failed"})


# --- defaults


def test_every_default_is_that_of_the_contract() -> None:
    job = job_of({"job_request_params": [{"prompt": "a cat"}]})
    assert job.job_id == "rp-1"
    assert job.webhook_url is None
    assert job.webhook_events == EVENTS
    video = job.videos[0]
    values = {name: getattr(video, name) for name in video.__dataclass_fields__ if name != "seed"}
    assert values == {
        "index": 0,
        "path": "job_request_params[0]",
        "mode": "text_to_video",
        "model": "a14b",
        "prompt": "a cat",
        "negative_prompt": OFFICIAL_NEGATIVE_PROMPT,
        "reference_image_url": None,
        "last_image_url": None,
        "reference_video_url": None,
        "strength": 0.8,
        "height": 480,
        "width": 832,
        "num_frames": 81,
        "fps": 16,
        "num_inference_steps": 50,
        "guidance_scale": 5.0,
        "guidance_scale_2": 5.0,
        "guidance_until": 1.0,
        "flow_shift": None,
        "camera_motion": None,
        "enhance_prompt": True,
        "quality_preset": None,
        "turbo_variant": "full",
        "step_cache": "off",
        "loras": (),
        "warnings": (),
        "area": 832 * 480,
        "prompt_expansion": False,
        "output": Output("mp4", "h264", "high", None, False, True, False, None),
        "preview": Previews("off", (0.15, 0.35, 0.6), only=False),
        "chain": None,
        "around": None,
        "svi": False,
    }


def test_limits_default_to_those_of_the_contract() -> None:
    assert Limits(max_videos_per_job=16, max_pixels=1280 * 720, max_frames=161) == DEFAULT_LIMITS


def test_the_official_negative_prompt_is_the_chinese_string() -> None:
    assert OFFICIAL_NEGATIVE_PROMPT.startswith("色调艳丽，过曝，静态，细节模糊不清")
    assert OFFICIAL_NEGATIVE_PROMPT.endswith("背景人很多，倒着走")


def test_the_5b_model_has_24_frames_a_second_and_keeps_another_rate() -> None:
    assert video_of(model="5b").fps == 24
    assert video_of(model="5b", fps=16).fps == 16


def test_catalogue_holds_the_figures_of_the_authors() -> None:
    figures = {spec.key: (spec.fps, spec.flow_shift, spec.boundary_ratio, spec.size_stride) for spec in CATALOGUE}
    assert figures == {"i2v": (16, 5.0, 0.9, 16), "t2v": (16, 12.0, 0.875, 16), "5b": (24, 5.0, None, 32)}
    assert {spec.frame_stride for spec in CATALOGUE} == {4}


# --- presets


@pytest.mark.parametrize(
    ("preset", "steps", "guidance"),
    [("draft", 30, 4.0), ("standard", 50, 5.0), ("high", 80, 5.5), ("ultra", 100, 6.0), ("turbo", 4, 1.0)],
)
def test_a_preset_overrides_steps_and_guidance(preset: str, steps: int, guidance: float) -> None:
    alone = video_of(quality_preset=preset)
    beside = video_of(quality_preset=preset, num_inference_steps=7, guidance_scale=9.0, guidance_scale_2=2.0)
    for video in (alone, beside):
        assert (video.num_inference_steps, video.guidance_scale, video.guidance_scale_2) == (steps, guidance, guidance)
        assert video.quality_preset == preset
    assert alone.warnings == ()
    assert beside.warnings[0] == (
        f"job_request_params[0].num_inference_steps: {steps} by quality_preset {preset}, not 7"
    )
    assert len(beside.warnings) == 3
    same = video_of(quality_preset=preset, num_inference_steps=steps, guidance_scale=guidance)
    assert same.warnings == ()
    assert len(PRESETS) == 5


def test_the_hybrid_variant_of_turbo_guides_the_high_noise_expert_alone() -> None:
    for beside in ({}, {"num_inference_steps": 7, "guidance_scale": 9.0, "guidance_scale_2": 2.0}):
        video = video_of(quality_preset="turbo", turbo_variant="hybrid", **beside)
        assert (video.num_inference_steps, video.guidance_scale, video.guidance_scale_2) == HYBRID == (20, 4.0, 1.0)
        assert video.turbo_variant == "hybrid"


def test_the_variant_of_turbo_needs_turbo() -> None:
    for preset in (None, "draft"):
        assert video_problems(quality_preset=preset, turbo_variant="hybrid") == {
            "turbo_variant": "needs quality_preset turbo beside it"
        }
        assert video_of(quality_preset=preset, turbo_variant="full").turbo_variant == "full"
    assert set(video_problems(quality_preset="turbo", turbo_variant="half")) == {"turbo_variant"}


@pytest.mark.parametrize("value", [True, "on", "slow", "BALANCED", 1])
def test_a_step_cache_of_another_name_is_refused(value: object) -> None:
    assert set(video_problems(step_cache=value)) == {"step_cache"}


@pytest.mark.parametrize("value", ["off", "balanced", "fast"])
def test_the_step_cache_is_as_asked_for(value: str) -> None:
    assert video_of(step_cache=value).step_cache == value


def test_a_preset_does_not_excuse_a_value_out_of_range() -> None:
    assert set(video_problems(quality_preset="draft", num_inference_steps=0)) == {"num_inference_steps"}


def test_guidance_of_the_low_noise_expert_follows_the_high_one() -> None:
    assert video_of(guidance_scale=3.5).guidance_scale_2 == 3.5
    assert video_of(guidance_scale=3.5, guidance_scale_2=None).guidance_scale_2 == 3.5
    assert video_of(guidance_scale=4, guidance_scale_2=3).guidance_scale_2 == 3.0
    assert video_of(guidance_scale_2=3).guidance_scale == 5.0


# --- corrections


@pytest.mark.parametrize(
    ("given", "made"), [(5, 5), (6, 5), (8, 5), (9, 9), (80, 77), (81, 81), (82, 81), (160, 157), (161, 161)]
)
def test_frames_go_down_to_4k_plus_1(given: int, made: int) -> None:
    video = video_of(num_frames=given)
    assert video.num_frames == made
    if given == made:
        assert video.warnings == ()
    else:
        (warning,) = video.warnings
        assert warning.startswith(f"job_request_params[0].num_frames: {given} lowered to {made}")


@pytest.mark.parametrize(
    ("model", "given", "made"),
    [("a14b", 495, 480), ("a14b", 496, 496), ("5b", 511, 480), ("5b", 512, 512), ("a14b", 271, 256), ("5b", 287, 256)],
)
@pytest.mark.parametrize("side", ["height", "width"])
def test_sides_go_down_to_the_multiple_of_the_model(model: str, given: int, made: int, side: str) -> None:
    video = video_of(model=model, **{side: given})
    assert getattr(video, side) == made
    assert len(video.warnings) == (given != made)
    assert all(line.startswith(f"job_request_params[0].{side}: {given} lowered to {made}") for line in video.warnings)


def test_each_correction_is_a_line_of_its_own() -> None:
    lines = video_of(height=481, width=833, num_frames=82).warnings
    assert [line.split(":")[0].rpartition(".")[2] for line in lines] == ["num_frames", "width", "height"]
