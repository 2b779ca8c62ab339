"""The building bricks of `parse`: reading a model, naming unknown fields, judging ids and URLs alone."""

from __future__ import annotations

import time
from typing import Any, get_args

import pytest

from worker.base.errors import Problem
from worker.request import Limits, payload
from worker.request.complaints import read
from worker.request.names import unknown_fields
from worker.request.parse import PRESETS
from worker.request.payload import CameraMotion, JobInput, LoraInput, VideoInput
from worker.request.problems import Problems, join
from worker.request.prompt_words import CAMERA_MOTIONS


def read_problems(data: dict[Any, Any], path: str = "") -> list[Problem]:
    problems = Problems(path)
    assert read(VideoInput, data, Limits(), problems) is None
    return problems.found


def test_read_gives_the_model_and_adds_no_problem() -> None:
    problems = Problems()
    video = read(VideoInput, {"prompt": " a cat "}, Limits(), problems)
    assert video is not None
    assert video.prompt == "a cat"
    assert problems.found == []


def test_read_adds_to_the_problems_that_are_there() -> None:
    problems = Problems(found=[Problem("earlier", "kept")])
    assert read(VideoInput, {}, Limits(), problems.at("at")) is None
    assert problems.found == [Problem("earlier", "kept"), Problem("at.prompt", "is missing")]


def test_models_are_frozen() -> None:
    video = VideoInput(prompt="a cat")
    with pytest.raises(ValueError, match="frozen"):
        video.prompt = "a dog"


@pytest.mark.parametrize(
    ("data", "path", "message"),
    [
        ({}, "prompt", "is missing"),
        ({"prompt": "a", "fps": "16"}, "fps", "must be an integer, got a string"),
        ({"prompt": "a", "fps": 16.0}, "fps", "must be an integer, got a number"),
        ({"prompt": "a", "fps": b"16"}, "fps", "must be an integer, got something else"),
        ({"prompt": "a", "flow_shift": {}}, "flow_shift", "must be a number, got an object"),
        ({"prompt": "a", "flow_shift": -(10**400)}, "flow_shift", "must be a finite number"),
        ({"prompt": "a", "strength": 0}, "strength", "must be more than 0 and at most 1, not 0"),
        ({"prompt": "a", "strength": 1.5}, "strength", "must be more than 0 and at most 1, not 1.5"),
        ({"prompt": "a", "thumbnail": 1}, "thumbnail", "must be true or false, got an integer"),
        ({"prompt": "a", "model": "7b"}, "model", "must be one of 'a14b' or '5b'"),
        ({"prompt": "a", "loras": [3]}, "loras[0]", "must be an object, got an integer"),
        ({"prompt": "a", "loras": [{"source": "a"}] * 9}, "loras", "must have at most 8 items"),
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


def test_no_two_of_our_own_names_are_taken_for_each_other() -> None:
    known = {*JobInput.model_fields, *VideoInput.model_fields, "job_request_params"}
    problems = Problems()
    for name in known:
        unknown_fields({name: 1}, known, problems)
    assert (problems.found, problems.warnings) == ([], [])


def test_the_last_known_name_may_be_the_word_that_is_added() -> None:
    problems = Problems()
    known = set(LoraInput.model_fields)
    names = ["source_scale", "scale_source", "scale_x_source"]
    unknown_fields(dict.fromkeys(names), known, problems)
    assert problems.warnings == [f"{name}: unknown field, ignored" for name in names]


@pytest.mark.parametrize(
    ("count", "lines", "last"),
    [(20, 20, "field19q: unknown field, ignored"), (21, 21, "at: 21 unknown fields in all, ignored")],
)
def test_unknown_fields_are_listed_up_to_twenty(count: int, lines: int, last: str) -> None:
    item = {f"field{index:02d}q": None for index in range(count)}
    problems = Problems("at")
    unknown_fields(item, {"prompt"}, problems)
    assert len(problems.warnings) == lines
    assert problems.warnings[-1].endswith(last)


def test_very_long_names_do_not_take_long() -> None:
    known = {*JobInput.model_fields, *VideoInput.model_fields}
    item = {f"{index}{'prompt' * 20_000}": None for index in range(200)}
    began = time.process_time()
    unknown_fields(item, known, Problems())
    assert time.process_time() - began < 10


@pytest.mark.parametrize("value", ["a", "A" * 128, "a.b", "0", "-._"])
def test_is_job_id(value: str) -> None:
    assert payload.is_job_id(value)


@pytest.mark.parametrize("value", ["", ".", "..", "a..b", "A" * 129, "a b", "é", "a\n", "\ud800", None, 1, b"a"])
def test_is_no_job_id(value: object) -> None:
    assert not payload.is_job_id(value)


@pytest.mark.parametrize("value", ["https://a", "http://a/b?c#d", "data:image/png;base64,AA=="])
def test_is_url(value: str) -> None:
    assert payload.is_url(value)


@pytest.mark.parametrize(
    "value", ["", "a", "://a", "https:", "https://a b", " https://a", "https://a\n", "https://\ud800", None, 1]
)
def test_is_no_url(value: object) -> None:
    assert not payload.is_url(value)


def test_join() -> None:
    assert join("", "a") == "a"
    assert join("a[1]", "b") == "a[1].b"
