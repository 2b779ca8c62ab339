"""The fields of a job, its two forms (a list of videos, or one video flat), and what is no job."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import IMAGE, job_of, problems_of, refusal

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
