"""`parse` against sections 1 and 4 of the public contract, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from worker.base.errors import InvalidRequest
from worker.request import CATALOGUE, Job, Limits, Output, VideoRequest
from worker.request.catalogue import OFFICIAL_NEGATIVE_PROMPT
from worker.request.contact import Contact, contact, payload_digest
from worker.request.names import MAX_FIELDS
from worker.request.parse import DEFAULT_LIMITS, draw_seed, parse
from worker.request.payload import MAX_LORAS, MAX_SEED, JobInput, LoraInput, VideoInput
from worker.request.problems import MAX_NAMED_PROBLEMS
from worker.request.settle import HYBRID, PRESETS
from worker.request.values import Previews

CAMERA_MOTIONS = [
    *("pan_left", "pan_right", "pan_up", "pan_down"),
    *("zoom_in", "zoom_out", "dolly_in", "dolly_out"),
    *("orbit_left", "orbit_right", "crane_up", "crane_down"),
    *("static", "handheld"),
]
IMAGE = "https://example.com/first.png"
LAST = "https://example.com/last.png"
VIDEO = "https://example.com/clip.mp4"
EVENTS = frozenset({"progress", "completed", "failed"})


def short(value: object) -> str:
    """A name for a parametrised value, however long the value is."""
    return (
        f"{value:.20}"
        if isinstance(value, str)
        else f"a large {type(value).__name__}"
        if is_large(value)
        else repr(value)
    )


def is_large(value: object) -> bool:
    return (isinstance(value, int) and value.bit_length() > 200) or (isinstance(value, list) and len(value) > 1)


def job_of(payload: object, *, limits: Limits = DEFAULT_LIMITS) -> Job:
    return parse(payload, default_job_id="rp-1", limits=limits)


def video_of(*, limits: Limits = DEFAULT_LIMITS, **fields: object) -> VideoRequest:
    (video,) = job_of({"job_request_params": [{"prompt": "a cat", **fields}]}, limits=limits).videos
    return video


def refusal(payload: object, *, limits: Limits = DEFAULT_LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(payload, default_job_id="rp-1", limits=limits)
    return caught.value


def problems_of(payload: object, *, limits: Limits = DEFAULT_LIMITS) -> dict[str | None, str]:
    return {problem.path: problem.message for problem in refusal(payload, limits=limits).problems}


def video_problems(*, limits: Limits = DEFAULT_LIMITS, **fields: object) -> dict[str | None, str]:
    """Problems by the name of the video's field."""
    found = problems_of({"job_request_params": [{"prompt": "a cat", **fields}]}, limits=limits)
    return {(path or "").removeprefix("job_request_params[0]."): message for path, message in found.items()}


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


# --- limits, both sides of each

INSIDE_AND_OUTSIDE: list[tuple[str, list[object], list[object]]] = [
    ("height", [256, 480], [255, 0, -480, 1921]),
    ("width", [256, 1920], [255, 1921]),
    ("num_frames", [5, 161], [4, 0, -1, 162, 10**400]),
    ("fps", [1, 60], [0, 61, -1]),
    ("num_inference_steps", [1, 100], [0, 101]),
    ("guidance_scale", [1, 1.0, 20, 20.0], [0.999, 20.001, 0, -1]),
    ("guidance_scale_2", [1, 1.0, 20, 20.0], [0.999, 20.001]),
    ("guidance_until", [0, 0.0, 0.5, 1, 1.0], [-0.001, 1.001]),
    ("flow_shift", [0.5, 25, 25.0], [0.499, 25.001, 0]),
    ("seed", [0, 1, 2**63 - 1], [-2, 2**63, 10**400, 10**5000]),
    ("negative_prompt", ["", "x" * 4000, f"  {'x' * 4000}\n"], ["x" * 4001]),
    ("prompt", ["x", "x" * 4000, f"  {'x' * 4000}\n", "é" * 4000], ["", " \n\t ", "x" * 4001, f" {'x' * 4001} "]),
    ("loras", [[], [{"source": "a"}] * MAX_LORAS], [[{"source": "a"}] * (MAX_LORAS + 1)]),
]


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, inside, _ in INSIDE_AND_OUTSIDE for value in inside], ids=short
)
def test_values_on_a_limit_are_taken(field: str, value: object) -> None:
    small = {"height": 256, "width": 256} if field in ("height", "width") else {}
    got = getattr(video_of(**{**small, field: value}), field)
    if field == "loras":
        assert len(got) == len(value)  # type: ignore[arg-type]
    else:
        assert got == (value.strip() if isinstance(value, str) else value)


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, _, outside in INSIDE_AND_OUTSIDE for value in outside], ids=short
)
def test_values_beyond_a_limit_are_refused_by_name(field: str, value: object) -> None:
    assert set(video_problems(**{field: value})) == {field}


@pytest.mark.parametrize("strength", [0.001, 0.5, 1, 1.0])
def test_strength_within_its_limits(strength: float) -> None:
    assert video_of(reference_video_url=VIDEO, strength=strength).strength == strength


@pytest.mark.parametrize("strength", [0, 0.0, -0.1, 1.001, 2])
def test_strength_beyond_its_limits(strength: float) -> None:
    assert set(video_problems(reference_video_url=VIDEO, strength=strength)) == {"strength"}


def test_the_message_of_a_limit_names_the_limit() -> None:
    assert video_problems(num_frames=162)["num_frames"] == "must be 5 to 161, not 162"
    assert video_problems(fps=0)["fps"] == "must be 1 to 60, not 0"
    wrong = video_problems(reference_video_url=VIDEO, strength=0)
    assert wrong["strength"] == "must be more than 0 and at most 1, not 0"
    assert video_problems(prompt="x" * 4001)["prompt"] == "must be 1 to 4000 characters after trimming, got 4001"


def test_max_frames_moves_with_the_limits() -> None:
    limits = Limits(max_frames=49)
    assert video_of(num_frames=49, limits=limits).num_frames == 49
    assert video_problems(num_frames=50, limits=limits) == {"num_frames": "must be 5 to 49, not 50"}
    assert video_of(num_frames=201, limits=Limits(max_frames=201)).num_frames == 201


@pytest.mark.parametrize(("most", "made"), [(80, 77), (81, 81), (21, 21), (20, 17), (5, 5), (400, 81)])
def test_max_frames_below_the_default_lowers_it(most: int, made: int) -> None:
    video = video_of(limits=Limits(max_frames=most))
    assert (video.num_frames, video.warnings) == (made, ())


def test_max_videos_per_job() -> None:
    one = {"prompt": "a cat"}
    assert len(job_of({"job_request_params": [one] * 16}).videos) == 16
    assert "at most 16" in problems_of({"job_request_params": [one] * 17})["job_request_params"]
    two = Limits(max_videos_per_job=2)
    assert len(job_of({"job_request_params": [one] * 2}, limits=two).videos) == 2
    assert set(problems_of({"job_request_params": [one] * 3}, limits=two)) == {"job_request_params"}


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (1280, 720, True),
        (720, 1280, True),
        (1295, 735, True),
        (1280, 736, False),
        (1296, 720, False),
        (1920, 480, True),
    ],
)
def test_max_pixels_counts_the_corrected_sides(width: int, height: int, fits: bool) -> None:
    if fits:
        video = video_of(width=width, height=height)
        assert video.width is not None
        assert video.height is not None
        assert video.width * video.height <= 1280 * 720
    else:
        (path,) = video_problems(width=width, height=height)
        assert path == "width"


def test_max_pixels_moves_with_the_limits() -> None:
    limits = Limits(max_pixels=256 * 256)
    assert video_of(width=256, height=256, limits=limits).width == 256
    assert "at most 65536" in video_problems(width=256, height=272, limits=limits)["width"]
    assert video_of(width=1920, height=1920, limits=Limits(max_pixels=1920 * 1920)).height == 1920


# --- job fields


@pytest.mark.parametrize("job_id", ["a", "a" * 128, "A.b_c-9", ".a.", "a.b.c", "-", "_"])
def test_good_job_ids(job_id: str) -> None:
    assert job_of({"job_id": job_id, "prompt": "a cat"}).job_id == job_id


@pytest.mark.parametrize(
    "job_id", ["", "a" * 129, "a b", "a/b", "..", "a..b", ".", "é", "a\n", "\ud800", "a\x00", 7, True, ["a"], {"a": 1}]
)
def test_bad_job_ids(job_id: object) -> None:
    assert set(problems_of({"job_id": job_id, "prompt": "a cat"})) == {"job_id"}


def test_webhook_events_are_a_selection() -> None:
    for given in ([], ["failed"], ["progress", "completed", "failed"], ["failed", "failed"]):
        assert job_of({"prompt": "a cat", "webhook_events": given}).webhook_events == frozenset(given)


@pytest.mark.parametrize("events", ["failed", {"failed": True}, 3])
def test_webhook_events_must_be_a_list(events: object) -> None:
    assert set(problems_of({"prompt": "a cat", "webhook_events": events})) == {"webhook_events"}


def test_an_unknown_webhook_event_is_named_by_its_place() -> None:
    found = problems_of({"prompt": "a cat", "webhook_events": ["failed", "complete", 3]})
    assert set(found) == {"webhook_events[1]", "webhook_events[2]"}


def test_a_list_of_a_million_events_costs_one_problem() -> None:
    assert set(problems_of({"prompt": "a cat", "webhook_events": [0] * 1_000_000})) <= {"webhook_events"} | {
        f"webhook_events[{index}]" for index in range(17)
    }


@pytest.mark.parametrize("url", [None, "https://example.com/hook", "http://example.com:8080/a?b=c"])
def test_webhook_url(url: str | None) -> None:
    assert job_of({"prompt": "a cat", "webhook_url": url}).webhook_url == url


@pytest.mark.parametrize("field", ["webhook_url", "reference_image_url", "reference_video_url", "last_image_url"])
@pytest.mark.parametrize(
    "url", ["", "example.com/a.png", "https:", "/etc/passwd", "https://a b", 5, ["https://a"], "https://\ud800"]
)
def test_what_is_no_url_is_refused(field: str, url: object) -> None:
    beside = {"reference_image_url": IMAGE} if field == "last_image_url" else {}
    assert set(problems_of({"prompt": "a cat", **beside, field: url})) == {field}


# --- strict types

A_WRONG_TYPE: dict[str, list[object]] = {
    "prompt": [1, True, ["a cat"], {"text": "a cat"}],
    "negative_prompt": [1, False, []],
    "reference_image_url": [1, True, [], {}],
    "last_image_url": [1],
    "reference_video_url": [1],
    "strength": ["0.8", True, [0.8]],
    "height": ["480", True, 480.5, [480], "x"],
    "width": ["832", True, 832.5, {}],
    "num_frames": ["81", True, 81.5, []],
    "fps": ["16", True, 16.5],
    "num_inference_steps": ["50", True, 50.5],
    "guidance_scale": ["5.0", True, []],
    "guidance_scale_2": ["5.0", True, []],
    "guidance_until": ["0.5", True, []],
    "flow_shift": ["5.0", True, {}],
    "seed": ["0", True, False, 0.5, []],
    "camera_motion": [1, True, "", "PAN_LEFT", "pan left", "spin", [], {}],
    "enhance_prompt": [1, 0, "true"],
    "quality_preset": [1, "", "Draft", "best", []],
    "model": ["", "A14B", "14b", 5, []],
    "loras": [{}, "a", 1],
    "thumbnail": [1, 0, "false"],
}


@pytest.mark.parametrize(("field", "value"), [(name, bad) for name, values in A_WRONG_TYPE.items() for bad in values])
def test_types_are_strict(field: str, value: object) -> None:
    found = problems_of({"job_request_params": [{"prompt": "a cat"}, {"prompt": "a cat", field: value}]})
    assert found.keys() - {"job_request_params[1].last_image_url"} <= {f"job_request_params[1].{field}"}
    assert f"job_request_params[1].{field}" in found


def test_a_wrong_type_says_what_came_and_what_must_come() -> None:
    assert video_problems(num_inference_steps="50") == {"num_inference_steps": "must be an integer, got a string"}
    assert video_problems(num_frames=True) == {"num_frames": "must be an integer, got a boolean"}
    assert video_problems(enhance_prompt=1) == {"enhance_prompt": "must be true or false, got an integer"}
    assert video_problems(loras=[None]) == {"loras[0]": "must be an object, got null"}
    assert video_problems(loras={}) == {"loras": "must be a list, got an object"}


@pytest.mark.parametrize("field", ["guidance_scale", "guidance_scale_2", "flow_shift"])
def test_an_integer_may_stand_for_a_float(field: str) -> None:
    got = getattr(video_of(**{field: 7}), field)
    assert got == 7.0
    assert type(got) is float


@pytest.mark.parametrize("field", ["guidance_scale", "guidance_scale_2", "flow_shift", "strength"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 10**400])
def test_numbers_are_finite(field: str, value: float) -> None:
    assert video_problems(reference_video_url=VIDEO, **{field: value}) == {field: "must be a finite number"}


def test_null_is_not_given_in_every_field() -> None:
    plain = job_of({"prompt": "a", "seed": 1, "loras": [{"source": "a"}]})
    nulls = dict.fromkeys([*JobInput.model_fields, *VideoInput.model_fields, "job_request_params"])
    lora = {**dict.fromkeys(LoraInput.model_fields), "source": "a"}
    assert job_of({**nulls, "prompt": "a", "seed": 1, "loras": [lora]}) == plain
    assert problems_of({**nulls, "fps": 0}) == {"prompt": "is missing", "fps": "must be 1 to 60, not 0"}


def test_a_whole_float_may_stand_for_an_integer() -> None:
    sent = {"height": 480, "width": 832, "num_frames": 33, "fps": 16, "num_inference_steps": 40, "seed": 7}
    floats = video_of(**{field: float(value) for field, value in sent.items()})
    assert floats == video_of(**sent)
    assert {type(getattr(floats, field)) for field in sent} == {int}


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
def test_the_camera_motions(motion: str) -> None:
    assert video_of(camera_motion=motion).camera_motion == motion


def test_there_are_fourteen_camera_motions() -> None:
    message = video_problems(camera_motion="spin")["camera_motion"]
    assert message.count("'") == 2 * 14
    assert all(f"'{motion}'" in message for motion in CAMERA_MOTIONS)


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


# --- modes and conflicts


@pytest.mark.parametrize(
    ("urls", "mode"),
    [
        ({}, "text_to_video"),
        ({"reference_image_url": IMAGE}, "image_to_video"),
        ({"reference_image_url": "data:image/png;base64,AAAA"}, "image_to_video"),
        ({"reference_image_url": IMAGE, "last_image_url": LAST}, "first_last_frame"),
        ({"reference_video_url": VIDEO}, "video_to_video"),
    ],
)
@pytest.mark.parametrize("model", ["a14b", "5b"])
def test_what_is_sent_chooses_the_mode(urls: dict[str, str], mode: str, model: str) -> None:
    video = video_of(model=model, **urls)
    assert video.mode == mode
    assert {name: getattr(video, name) for name in urls} == urls


def test_a_last_image_needs_a_first() -> None:
    assert "needs reference_image_url" in video_problems(last_image_url=LAST)["last_image_url"]


def test_a_video_and_an_image_exclude_each_other() -> None:
    assert set(video_problems(reference_video_url=VIDEO, reference_image_url=IMAGE)) == {"reference_video_url"}
    assert set(video_problems(reference_video_url=VIDEO, last_image_url=LAST)) == {"last_image_url"}


def test_strength_without_a_video_is_ignored_with_a_warning() -> None:
    video = video_of(strength=0.5)
    assert video.warnings == ("job_request_params[0].strength: ignored, it is for reference_video_url",)


# --- prompts and seeds


def test_an_empty_negative_prompt_means_none() -> None:
    assert video_of(negative_prompt="").negative_prompt == ""
    assert video_of(negative_prompt="  ").negative_prompt == ""
    assert video_of(negative_prompt=" blurry ").negative_prompt == "blurry"


def test_the_prompt_is_trimmed_and_kept() -> None:
    assert video_of(prompt="\n a cat, 猫 \t").prompt == "a cat, 猫"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "camera_motion", "model", "quality_preset"])
def test_a_lone_surrogate_is_refused(field: str) -> None:
    assert video_problems(**{field: "\ud800"}) == {field: "must be a string of valid Unicode"}


def test_seed_0_is_a_seed() -> None:
    def never() -> int:
        raise AssertionError("a seed was drawn")

    job = parse({"prompt": "a cat", "seed": 0}, default_job_id="rp-1", new_seed=never)
    assert job.videos[0].seed == 0


def test_a_seed_is_drawn_for_each_video_that_has_none() -> None:
    drawn = iter([11, 22])
    payload = {"job_request_params": [{"prompt": "a"}, {"prompt": "b", "seed": 5}, {"prompt": "c", "seed": None}]}
    job = parse(payload, default_job_id="rp-1", new_seed=lambda: next(drawn))
    assert [video.seed for video in job.videos] == [11, 5, 22]


def test_drawn_seeds_are_in_range_and_differ() -> None:
    seeds = {draw_seed() for _ in range(1000)}
    assert len(seeds) == 1000
    assert all(0 <= seed <= MAX_SEED for seed in seeds)
    assert max(seeds) > 2**61  # a draw from 32 or 53 bits would never come this far
    assert MAX_SEED == 2**63 - 1


# --- LoRAs


def test_loras_with_their_defaults() -> None:
    video = video_of(
        loras=[
            {"source": "a"},
            {"source": "b", "scale": 2, "expert": "high"},
            {"source": "c", "scale": -0.5, "expert": "low"},
            {"source": "d", "scale": 100},
            {"source": "e", "scale": -100.0},
        ]
    )
    assert [(lora.source, lora.scale, lora.expert) for lora in video.loras] == [
        ("a", 1.0, "both"),
        ("b", 2.0, "high"),
        ("c", -0.5, "low"),
        ("d", 100.0, "both"),
        ("e", -100.0, "both"),
    ]


@pytest.mark.parametrize(
    ("lora", "path"),
    [
        ({}, "loras[1].source"),
        ({"source": ""}, "loras[1].source"),
        ({"source": 5}, "loras[1].source"),
        ({"source": "\ud800"}, "loras[1].source"),
        ({"source": "a", "scale": "1"}, "loras[1].scale"),
        ({"source": "a", "scale": True}, "loras[1].scale"),
        ({"source": "a", "scale": float("nan")}, "loras[1].scale"),
        ({"source": "a", "scale": 10**400}, "loras[1].scale"),
        ({"source": "a", "scale": 1e30}, "loras[1].scale"),
        ({"source": "a", "scale": 100.1}, "loras[1].scale"),
        ({"source": "a", "scale": -100.1}, "loras[1].scale"),
        ({"source": "a", "expert": "middle"}, "loras[1].expert"),
        ({"source": "a", "scle": 1.0}, "loras[1].scle"),
        ("a", "loras[1]"),
        (None, "loras[1]"),
    ],
)
def test_a_bad_lora_is_named_by_its_place(lora: object, path: str) -> None:
    assert set(video_problems(loras=[{"source": "a"}, lora])) == {path}


def test_an_unknown_field_of_a_lora_is_ignored_with_a_warning() -> None:
    assert video_of(loras=[{"source": "a", "trigger": "x"}]).warnings == (
        "job_request_params[0].loras[0].trigger: unknown field, ignored",
    )


# --- unknown fields


def test_unknown_fields_of_the_job_are_told_with_every_video() -> None:
    job = job_of({"tenant": 5, "job_request_params": [{"prompt": "a"}, {"prompt": "b", "mood": 1}]})
    assert job.videos[0].warnings == ("tenant: unknown field, ignored",)
    assert job.videos[1].warnings == (
        "tenant: unknown field, ignored",
        "job_request_params[1].mood: unknown field, ignored",
    )


def test_a_misspelt_prompt_at_the_top_is_named() -> None:
    found = problems_of({"promt": "a cat"})
    assert found["promt"] == "is not a field; did you mean prompt?"
    assert "is missing" in found["job_request_params"]


@pytest.mark.parametrize("name", ["webhook", "callbackUrl", "webhookUrl", "requests"])
def test_a_foreign_or_misspelt_field_of_the_job_is_an_error_in_either_form(name: str) -> None:
    assert name in problems_of({"job_request_params": [{"prompt": "a"}], name: 1})
    assert name in problems_of({"prompt": "a", name: 1})


def test_keys_that_are_no_strings_do_not_harm() -> None:
    item: dict[Any, Any] = {"prompt": "a cat", 1: 2, None: 3, (1, 2): 4, 2.5: 5}
    warnings = job_of({"job_request_params": [item], 7: 8}).videos[0].warnings
    assert "7: unknown field, ignored" in warnings
    assert "job_request_params[0].None: unknown field, ignored" in warnings


# --- the two forms


def test_the_flat_form_is_one_video_request() -> None:
    payload = {
        "job_id": "j",
        "webhook_url": "https://example.com/h",
        "webhook_events": ["failed"],
        "prompt": "a cat",
        "fps": 8,
    }
    job = job_of(payload)
    assert (job.job_id, job.webhook_url, job.webhook_events) == ("j", "https://example.com/h", frozenset({"failed"}))
    (video,) = job.videos
    assert (video.index, video.path, video.fps, len(video.warnings)) == (0, "", 8, 1)
    assert video.at("fps") == "fps"


def test_paths_of_the_flat_form_have_no_prefix() -> None:
    assert problems_of({"prompt": "a cat", "fps": 0, "loras": [{}]}).keys() == {"fps", "loras[0].source"}
    assert job_of({"prompt": "a", "num_frames": 6, "foo": 1}).videos[0].warnings == (
        "foo: unknown field, ignored",
        "num_frames: 6 lowered to 5 (the model makes 4k + 1 frames)",
    )


def test_the_list_wins_over_a_prompt_beside_it() -> None:
    job = job_of({"prompt": "ignored", "job_request_params": [{"prompt": "a cat"}]})
    assert job.videos[0].prompt == "a cat"
    assert job.videos[0].warnings == ("prompt: unknown field, ignored",)


def test_videos_keep_their_order_and_their_place() -> None:
    job = job_of({"job_request_params": [{"prompt": str(index)} for index in range(5)]})
    assert [(video.index, video.path, video.prompt) for video in job.videos] == [
        (index, f"job_request_params[{index}]", str(index)) for index in range(5)
    ]
    assert job.videos[2].at("num_frames") == "job_request_params[2].num_frames"


@pytest.mark.parametrize("payload", [None, [], "a cat", 5, True, [{"prompt": "a cat"}], b"{}"])
def test_an_input_that_is_no_object(payload: object) -> None:
    assert refusal(payload).path == "input"


@pytest.mark.parametrize("entries", [None, [], {}, "a cat", 3, True, {"prompt": "a cat"}])
def test_job_request_params_must_be_a_list_with_something_in_it(entries: object) -> None:
    assert set(problems_of({"job_request_params": entries})) == {"job_request_params"}


def test_an_empty_input_says_what_to_send() -> None:
    assert "job_request_params: is missing" in str(refusal({}))


def test_entries_that_are_no_objects_are_named_by_their_place() -> None:
    found = problems_of({"job_request_params": [None, {"prompt": "a"}, "x", ["prompt"]]})
    assert set(found) == {f"job_request_params[{index}]" for index in (0, 2, 3)}


# --- the report


def test_all_problems_come_at_once() -> None:
    error = refusal(
        {
            "job_id": "a/b",
            "webhook_url": 5,
            "job_request_params": [
                {"prompt": "ok"},
                {"num_frames": 4, "height": True, "last_image_url": LAST},
                {"prompt": "", "num_infrence_steps": 3, "width": 1920, "height": 1920, "image_url": IMAGE},
                {"prompt": "a", "fps": 0, "target_fps": 1, "output_codec": "vp9", "resolution": "480p", "width": 256},
                7,
            ],
        }
    )
    paths = {problem.path for problem in error.problems}
    assert paths == {
        "job_id",
        "webhook_url",
        "job_request_params[1].prompt",
        "job_request_params[1].num_frames",
        "job_request_params[1].height",
        "job_request_params[1].last_image_url",
        "job_request_params[2].prompt",
        "job_request_params[2].num_infrence_steps",
        "job_request_params[2].width",
        "job_request_params[2].image_url",
        "job_request_params[3].fps",
        "job_request_params[3].target_fps",
        "job_request_params[3].output_codec",
        "job_request_params[3].resolution",
        "job_request_params[4]",
    }
    told = error.as_dict()
    assert told["code"] == "invalid_request"
    assert told["retryable"] is False
    assert told["path"] == error.problems[0].path
    assert all(str(problem) in str(told["message"]) for problem in error.problems)


def test_the_path_is_dotted_as_in_the_contract() -> None:
    payload = {"job_request_params": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "num_frames": 500}]}
    error = refusal(payload)
    assert error.path == "job_request_params[2].num_frames"
    assert str(error) == "job_request_params[2].num_frames: must be 5 to 161, not 500"


def test_a_payload_of_mistakes_alone_gives_a_message_of_bounded_length() -> None:
    slips = {f"promp{'_' * count}t": 1 for count in range(1, 30)}
    error = refusal({"job_request_params": [{"prompt": "", **slips}] * 16})
    assert len(error.problems) == MAX_NAMED_PROBLEMS + 1
    assert str(error.problems[-1]).startswith("and ")
    assert len(str(error)) < 20_000


def nested(depth: int) -> list[Any]:
    outer: list[Any] = []
    inner = outer
    for _ in range(depth):
        inner.append([])
        inner = inner[0]
    return outer


@pytest.mark.parametrize("field", ["seed", "prompt", "camera_motion", "reference_image_url", "height"])
def test_deep_nesting_is_a_wrong_type(field: str) -> None:
    assert set(video_problems(**{field: nested(100_000)})) == {field}


def test_deep_nesting_in_lists_and_unknown_fields() -> None:
    deep = nested(100_000)
    assert video_of(strange=deep).warnings != ()
    assert set(video_problems(loras=deep)) == {"loras[0]"}
    assert set(problems_of({"job_request_params": deep})) == {"job_request_params[0]"}
    assert set(problems_of({"prompt": "a", "webhook_events": deep})) == {"webhook_events[0]"}


# --- what can be read of a payload that was refused


@pytest.mark.parametrize("payload", [None, [], "x", 5, {}, {"job_id": None, "webhook_url": None}])
def test_contact_of_a_payload_that_names_nobody(payload: object) -> None:
    assert contact(payload, default_job_id="rp-1") == Contact("rp-1", None, EVENTS, 1, (), payload_digest(payload))


def test_contact_reads_what_is_good() -> None:
    videos = [{"prompt": " a cat ", "negative_prompt": "dogs", "num_outputs": 3}, 5, {"prompt": 7, "num_outputs": 9}]
    payload = {
        "job_id": "j-1",
        "webhook_url": "https://example.com/h",
        "webhook_events": ["failed"],
        "prompt": "a bird",
        "job_request_params": videos,
    }
    assert contact(payload, default_job_id="rp-1") == Contact(
        "j-1",
        "https://example.com/h",
        frozenset({"failed"}),
        5,
        ("a bird", "a cat", "dogs"),
        payload_digest(payload),
    )
    refusal(payload)


@pytest.mark.parametrize("job_id", ["..", "a/b", "", "a" * 129, 5, ["a"], {"a": 1}, True])
def test_contact_passes_over_a_bad_job_id(job_id: object) -> None:
    assert contact({"job_id": job_id}, default_job_id="rp-1").job_id == "rp-1"


@pytest.mark.parametrize("url", ["", "no url", 5, ["https://a"], "https://\ud800"])
def test_contact_passes_over_a_bad_url(url: object) -> None:
    assert contact({"webhook_url": url}, default_job_id="rp-1").webhook_url is None


@pytest.mark.parametrize("events", ["failed", None, 5, {}, ["complete"], ["failed", 3], [["failed"]], [{}]])
def test_contact_has_every_event_where_the_choice_cannot_be_read(events: object) -> None:
    assert contact({"webhook_events": events}, default_job_id="rp-1").events == EVENTS


def test_contact_does_no_work_for_the_fields_of_an_object_that_is_refused() -> None:
    def digest(count: int, beyond: str) -> str | None:
        many = {f"x{index}": index for index in range(count)} | {"z": beyond}
        return contact({"job_request_params": [{"loras": [many]}]}, default_job_id="j").digest

    assert digest(MAX_FIELDS - 1, "a") != digest(MAX_FIELDS - 1, "b")
    assert digest(MAX_FIELDS, "a") == digest(MAX_FIELDS, "b")


def test_contact_of_an_empty_choice_is_nothing() -> None:
    assert contact({"webhook_events": []}, default_job_id="rp-1").events == frozenset()


@pytest.mark.parametrize("payload", [nested(100_000), {"prompt": "a", "deep": nested(100_000)}, {1: 2, "a": 3}])
def test_what_cannot_be_written_as_json_has_no_digest(payload: object) -> None:
    found = contact(payload, default_job_id="rp-1")
    assert (found.job_id, found.digest) == ("rp-1", None)


# --- previews


@pytest.mark.parametrize(
    ("fields", "preview"),
    [
        ({}, Previews()),
        ({"preview": "animated"}, Previews("animated")),
        ({"preview": "strip", "preview_at": [0.5, 0.1, 0.5]}, Previews("strip", (0.1, 0.5))),
        ({"preview_only": True}, Previews("strip", only=True)),
        ({"preview": "animated", "preview_only": True}, Previews("animated", only=True)),
        (
            {"preview": "strip", "preview_at": [0.01, 0.2, 0.3, 0.4, 0.99]},
            Previews("strip", (0.01, 0.2, 0.3, 0.4, 0.99)),
        ),
    ],
)
def test_previews_that_are_asked_for(fields: dict[str, object], preview: Previews) -> None:
    assert (video_of(**fields).preview, video_of(**fields).warnings) == (preview, ())


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"preview": "gif"}, "preview"),
        ({"preview_at": []}, "preview_at"),
        ({"preview_at": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}, "preview_at"),
        ({"preview_at": [0]}, "preview_at[0]"),
        ({"preview_at": [0.1, 1]}, "preview_at[1]"),
        ({"preview_only": True, "segments": [{"prompt": "a"}, {"prompt": "b"}]}, "preview_only"),
    ],
)
def test_previews_that_cannot_be(fields: dict[str, object], path: str) -> None:
    assert [each.removeprefix("job_request_params[0].") for each in video_problems(**fields) if each] == [path]


def test_what_has_no_effect_beside_previews_is_said() -> None:
    assert "ignored, it is for preview" in video_of(preview_at=[0.5]).warnings[0]
    ignored = video_of(preview_only=True, target_fps=32, response_format="base64").warnings
    assert len(ignored) == 2
    assert all("preview_only makes no video" in line for line in ignored)
