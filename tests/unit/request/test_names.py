"""Names that are not ours: which are refused, which ignored, and how much work a payload may cause."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.request_kit import job_of, refusal
from worker.request import foreign, names
from worker.request.payload import JobInput, LoraInput, VideoInput
from worker.request.problems import MAX_COMPARED_NAMES, Problems

OURS = frozenset({*JobInput.model_fields, *VideoInput.model_fields, "job_request_params"})
OF_A_LORA = frozenset(LoraInput.model_fields)


def judged(item: dict[Any, Any], known: frozenset[str] = OURS) -> tuple[dict[str | None, str], list[str]]:
    """The problems of `item` by their path, and the warnings."""
    problems = Problems()
    index = foreign.OF_FLAT if known is OURS else foreign.OF_LORA
    names.unknown_fields(item, known, index, problems)
    return {problem.path: problem.message for problem in problems.found.problems}, problems.warnings


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("num_infrence_steps", "num_inference_steps"),
        ("numInferenceSteps", "num_inference_steps"),
        ("num-frames", "num_frames"),
        ("promt", "prompt"),
        ("Seed", "seed"),
        ("sede", "seed"),
        ("widht", "width"),
        ("heigth", "height"),
        ("guidence_scale", "guidance_scale"),
        ("reference_imge_url", "reference_image_url"),
        ("webhookUrl", "webhook_url"),
        ("job_ids", "job_id"),
        ("job_request_param", "job_request_params"),
        ("scle", "scale"),
    ],
)
def test_a_slip_of_the_pen_is_refused_with_what_was_meant(name: str, meant: str) -> None:
    known = OURS if meant in OURS else OF_A_LORA
    assert judged({name: 1}, known) == ({name: f"is not a field; did you mean {meant}?"}, [])


@pytest.mark.parametrize(
    "name",
    [
        *("user_id", "metadata", "priority", "style", "title", "tags", "name", "tenant", "mood", "user", "x", "тест"),
        *("prompt_id", "model_id", "request_id", "parent_prompt", "trace_id", "session_id", "version", "language"),
        *("enable_safety_checker", "video_write_mode", "gps", "date"),
    ],
)
def test_another_unknown_name_is_ignored_with_a_warning(name: str) -> None:
    assert judged({name: {"any": "thing"}}) == ({}, [f"{name}: unknown field, ignored"])


def test_none_of_our_own_names_is_refused() -> None:
    assert judged(dict.fromkeys(OURS, 1)) == ({}, [])
    assert judged(dict.fromkeys(OF_A_LORA, 1), OF_A_LORA) == ({}, [])


def test_null_is_not_given_under_any_name() -> None:
    problems, warnings = judged(dict.fromkeys(["image_url", "widht", "user_id"]))
    assert (problems, len(warnings)) == ({}, 3)


@pytest.mark.parametrize("name", ["x" * 100_000, "a\x00b", "a\nTraceback", "\ud800", "\u202e"])
def test_a_name_that_cannot_be_shown_is_not_shown(name: str) -> None:
    assert judged({name: 1})[1] == ["(a name that cannot be shown): unknown field, ignored"]


@pytest.mark.parametrize("count", [20, 21, names.MAX_FIELDS])
def test_unknown_fields_are_listed_up_to_twenty(count: int) -> None:
    problems, warnings = judged({f"x{index}": 1 for index in range(count)})
    assert problems == {}
    assert warnings[:20] == [f"x{index}: unknown field, ignored" for index in range(20)]
    assert warnings[20:] == ([] if count == 20 else [f"input: {count} unknown fields in all, ignored"])


def test_an_object_of_too_many_fields_is_refused_and_not_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = counted(monkeypatch)
    many = {f"prompt{index}": 1 for index in range(names.MAX_FIELDS)}
    payload = {"job_request_params": [{"prompt": "a", **many}] * 16}
    assert [str(problem) for problem in refusal(payload).problems] == [
        f"job_request_params[{index}]: has 1,001 fields; send at most 1,000" for index in range(16)
    ]
    assert compared == []


def test_a_payload_has_one_budget_for_comparing_names(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = counted(monkeypatch)
    many = {f"no_field_of_ours_{index}": 1 for index in range(200)}
    video = {"prompt": "a", **many, "loras": [{"source": "a", **many}] * 8}
    job_of({"job_request_params": [video] * 16})
    assert len(set(compared)) > 0
    assert len(compared) <= MAX_COMPARED_NAMES * len(VideoInput.model_fields)


def test_long_names_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = counted(monkeypatch)
    judged({f"{index}{'prompt' * 20_000}": 1 for index in range(200)})
    assert compared == []


def test_a_name_of_another_service_is_refused_however_many_came_before() -> None:
    many = {f"x{index}": 1 for index in range(900)}
    assert "image_url" in judged({**many, "image_url": "https://example.com/a.png"})[0]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are compared letter by letter from now on, once for each that they are compared with."""
    compared: list[str] = []
    distance = names.OSA.distance

    class Counting:
        @staticmethod
        def distance(sent: str, candidate: str, *, score_cutoff: int) -> int:
            compared.append(sent)
            return distance(sent, candidate, score_cutoff=score_cutoff)

    monkeypatch.setattr(names, "OSA", Counting)
    return compared
