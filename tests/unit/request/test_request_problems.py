"""Unknown fields, and the report: every problem of a payload at once, each with its path."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.request_kit import IMAGE, LAST, job_of, nested, problems_of, refusal, video_of, video_problems
from worker.request.problems import MAX_NAMED_PROBLEMS

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


@pytest.mark.parametrize("field", ["seed", "prompt", "camera_motion", "reference_image_url", "height"])
def test_deep_nesting_is_a_wrong_type(field: str) -> None:
    assert set(video_problems(**{field: nested(100_000)})) == {field}


def test_deep_nesting_in_lists_and_unknown_fields() -> None:
    deep = nested(100_000)
    assert video_of(strange=deep).warnings != ()
    assert set(video_problems(loras=deep)) == {"loras[0]"}
    assert set(problems_of({"job_request_params": deep})) == {"job_request_params[0]"}
    assert set(problems_of({"prompt": "a", "webhook_events": deep})) == {"webhook_events[0]"}
