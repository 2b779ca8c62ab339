"""Both sides of each limit of a request, and its strict types."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import VIDEO, job_of, problems_of, video_of, video_problems
from worker.request import Limits
from worker.request.payload import MAX_LORAS, JobInput, LoraInput, VideoInput

CAMERA_MOTIONS = [
    *("pan_left", "pan_right", "pan_up", "pan_down"),
    *("zoom_in", "zoom_out", "dolly_in", "dolly_out"),
    *("orbit_left", "orbit_right", "crane_up", "crane_down"),
    *("static", "handheld"),
]


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
    "target_fps": ["32", True, 32.5],
    "duration_seconds": ["3", True, []],
    "num_outputs": ["1", True, 1.5],
    "overlap_frames": ["1", True, False, 5.5, []],
    "preview_at": [0.5, "0.5", {}],
    "preview_only": [1, "true"],
    "segments": [{}, "a", 2],
    "loop": [1, "true"],
    "color_match": [0, []],
    "frames_zip": [1],
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
