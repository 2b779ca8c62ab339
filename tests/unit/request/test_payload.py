"""The building bricks of `parse`: reading a model, judging ids and URLs alone."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from worker.base.errors import Problem
from worker.request import Limits, payload
from worker.request.complaints import read
from worker.request.payload import CameraMotion, VideoInput
from worker.request.problems import Problems, join
from worker.request.prompt_words import CAMERA_MOTIONS
from worker.request.settle import PRESETS


def read_problems(data: dict[Any, Any], path: str = "") -> list[Problem]:
    problems = Problems(path)
    read(VideoInput, data, Limits(), problems, prompt="-")
    return problems.found.problems


def test_read_gives_the_model_and_adds_no_problem() -> None:
    problems = Problems()
    video = read(VideoInput, {"prompt": " a cat "}, Limits(), problems)
    assert video.prompt == "a cat"
    assert problems.found.problems == []


def test_read_adds_to_the_problems_that_are_there() -> None:
    problems = Problems()
    problems.refuse("earlier", "kept")
    read(VideoInput, {}, Limits(), problems.at("at"), prompt="-")
    assert problems.found.problems == [Problem("earlier", "kept"), Problem("at.prompt", "is missing")]


def test_a_field_that_is_wrong_is_read_as_not_given_and_the_others_as_they_are() -> None:
    video = read(VideoInput, {"fps": "16", "width": 640, "seed": [1]}, Limits(), Problems(), prompt="-")
    assert (video.prompt, video.fps, video.width, video.seed) == ("-", None, 640, None)


def test_a_field_has_one_problem_the_first() -> None:
    problems = Problems("at")
    problems.refuse("fps", "first")
    problems.refuse("fps", "second")
    assert problems.found.problems == [Problem("at.fps", "first")]
    assert not problems.none_in("width", "fps")
    assert problems.none_in("width")


def test_models_are_frozen() -> None:
    video = VideoInput(prompt="a cat")
    with pytest.raises(ValueError, match="frozen"):
        video.prompt = "a dog"


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({}, "prompt", "is missing"),
        ({"prompt": "a", "fps": "16"}, "fps", "must be an integer, got a string"),
        ({"prompt": None}, "prompt", "is missing"),
        ({"prompt": "a", "fps": 16.5}, "fps", "must be an integer, got a number"),
        ({"prompt": "a", "fps": 61.0}, "fps", "must be 1 to 60, not 61"),
        ({"prompt": "a", "fps": b"16"}, "fps", "must be an integer, got something else"),
        ({"prompt": "a", "flow_shift": {}}, "flow_shift", "must be a number, got an object"),
        ({"prompt": "a", "flow_shift": -(10**400)}, "flow_shift", "must be a finite number"),
        ({"prompt": "a", "strength": 0}, "strength", "must be more than 0 and at most 1, not 0"),
        ({"prompt": "a", "strength": 1.5}, "strength", "must be more than 0 and at most 1, not 1.5"),
        ({"prompt": "a", "thumbnail": 1}, "thumbnail", "must be true or false, got an integer"),
        ({"prompt": "a", "model": "7b"}, "model", "must be one of 'a14b' or '5b'"),
        ({"prompt": "a", "loras": [3]}, "loras[0]", "must be an object, got an integer"),
        ({"prompt": "a", "loras": [{"source": "a"}] * 9}, "loras", "must have at most 8 items"),
        ({"prompt": "a", "loras": [{"source": ""}]}, "loras[0].source", "must not be empty"),
        ({"prompt": "a", "loras": [{"low": "a" * 2049}]}, "loras[0].low", "must have at most 2048 characters"),
        ({"prompt": "a", "preview_at": []}, "preview_at", "must not be empty"),
        ({"prompt": "a", "segments": [{}]}, "segments", "must have at least 2 items, not 1"),
        ({"prompt": "\udfff"}, "prompt", "must be a string of valid Unicode"),
    ],
)
def test_complaints_say_what_to_send(data: dict[str, Any], path: str, message: str) -> None:
    assert read_problems(data) == [Problem(path, message)]
    assert read_problems(data, "job_request_params[3]") == [Problem(f"job_request_params[3].{path}", message)]


def test_complaints_do_not_repeat_what_was_sent() -> None:
    secret = "hunter2-hunter2"
    for field in VideoInput.model_fields:
        for value in ([secret], {"key": secret}, f"{secret} \ud800"):
            for problem in read_problems({"prompt": "a", field: value}):
                assert secret not in str(problem)


def test_the_literals_agree_with_the_tables_elsewhere() -> None:
    assert set(get_args(CameraMotion)) == set(CAMERA_MOTIONS)
    assert set(get_args(payload.QualityPreset)) == set(PRESETS)
    assert get_args(payload.WebhookEvent) == ("progress", "completed", "failed")


def test_join() -> None:
    assert join("", "a") == "a"
    assert join("a[1]", "b") == "a[1].b"
