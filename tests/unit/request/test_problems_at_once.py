"""Every problem of a payload is found beside every other, URLs that may not be fetched among them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.kits.request_kit import IMAGE, flat_problems
from worker.base.errors import InputBlocked, WorkerError
from worker.request.parse import parse


def test_what_follows_from_a_wrong_field_is_not_reported_beside_it() -> None:
    wrong = {"fps": 0, "duration_seconds": 30, "target_fps": 10, "output_format": "mov", "output_codec": "vp9"}
    assert flat_problems(**wrong).keys() == {"fps", "output_format"}
    assert flat_problems(width="wide", height=1920).keys() == {"width"}
    assert flat_problems(reference_image_url="no url", last_image_url=IMAGE).keys() == {"reference_image_url"}


@pytest.mark.parametrize(
    ("segments", "refused"),
    [
        (7, "segments"),
        ([{}], "segments"),
        ([{"last_image_url": IMAGE}, {"seed": -2}], "segments[1].seed"),
        ([7, {}], "segments[0]"),
    ],
)
def test_what_needs_segments_is_not_refused_where_they_are_wrong(segments: object, refused: str) -> None:
    beside = {"loop": True, "continuity": "keyframes", "reference_image_url": "no url"}
    assert flat_problems(segments=segments, **beside).keys() == {refused, "reference_image_url"}


def test_what_is_wrong_inside_of_a_list_hides_nothing_beside_it() -> None:
    loras = [
        {"source": "http://10.0.0.1/", "scale": 101},
        {"source": "http://10.0.0.2/"},
        {"high": "http://10.0.0.3/", "low": 5},
        {"high": "http://10.0.0.4/", "low": "b", "expert": "low"},
        "c.safetensors",
    ]
    segments = [
        {"seed": -2, "last_image_url": "http://10.0.0.5/"},
        {"num_frames": 9, "duration_seconds": 3},
        {"num_frames": 4, "loras": [{"source": "a", "scale": True}, {}, *loras[1:2]]},
        None,
    ]
    error = refusal({"prompt": "a", "loras": loras, "segments": segments, "last_image_url": "http://10.0.0.6/"})
    assert {problem.path for problem in error.problems} == {
        "loras[0].scale",
        "loras[0].source",
        "loras[1].source",
        "loras[2].high",
        "loras[2].low",
        "loras[3].expert",
        "loras[3].high",
        "loras[4]",
        "segments[0].seed",
        "segments[0].last_image_url",
        "segments[1].duration_seconds",
        "segments[2].num_frames",
        "segments[2].loras[0].scale",
        "segments[2].loras[1].source",
        "segments[2].loras[2].source",
        "segments[3]",
        "last_image_url",
    }


def test_every_kind_of_problem_is_found_beside_every_other() -> None:
    wrong: dict[str, Any] = {
        "prompt": "",
        "width": 1920,
        "height": 1920,
        "num_frames": 400,
        "target_fps": 5,
        "output_codec": "vp9",
        "image": IMAGE,
        "last_image_url": IMAGE,
        "sede": 3,
        "loras": [{"source": "a", "scale": 1e9}],
    }
    assert flat_problems(**wrong).keys() == {
        *(
            "prompt",
            "width",
            "num_frames",
            "target_fps",
            "output_codec",
            "image",
            "last_image_url",
            "sede",
            "loras[0].scale",
        )
    }


def blocked(url: str, *, path: str) -> None:
    """A check of URLs that knows one good host."""
    if not url.startswith("https://example.com/"):
        raise InputBlocked("this URL may not be fetched", path=path)


def refusal(payload: dict[str, Any]) -> WorkerError:
    with pytest.raises(WorkerError) as caught:
        parse(payload, default_job_id="j", check_url=blocked)
    return caught.value


BAD_URLS: dict[str, Any] = {
    "webhook_url": "http://10.0.0.1/",
    "job_request_params": [
        {
            "prompt": "a",
            "reference_image_url": "http://10.0.0.2/",
            "last_image_url": "http://10.0.0.3/",
            "upload_url": "data:,",
            "loras": [
                {"source": "HTTP://10.0.0.4/a"},
                {"high": "http://10.0.0.5/", "low": "owner/repo/a.safetensors"},
                {"source": "b.safetensors"},
            ],
        },
        {"prompt": "b", "reference_video_url": "data:video/mp4;base64,AAAA"},
    ],
}

BAD_PATHS = [
    "webhook_url",
    "job_request_params[0].reference_image_url",
    "job_request_params[0].last_image_url",
    "job_request_params[0].upload_url",
    "job_request_params[0].loras[0].source",
    "job_request_params[0].loras[1].high",
    "job_request_params[1].reference_video_url",
]


def test_every_url_that_may_not_be_fetched_is_named() -> None:
    error = refusal(BAD_URLS)
    assert error.code == "input_blocked"
    assert [problem.path for problem in error.problems] == BAD_PATHS
    assert error.several()["problems"] == [
        {"path": path, "message": "this URL may not be fetched"} for path in BAD_PATHS
    ]


def test_urls_are_named_beside_what_else_is_wrong_which_gives_the_code() -> None:
    error = refusal({**BAD_URLS, "job_id": "a/b"})
    assert error.code == "invalid_request"
    assert {problem.path for problem in error.problems} == {"job_id", *BAD_PATHS}


def test_good_urls_and_data_uris_of_pictures_pass() -> None:
    fields = {"prompt": "a", "reference_image_url": "DATA:image/png;base64,AAAA", "webhook_url": IMAGE}
    assert parse(fields, default_job_id="j", check_url=blocked).videos[0].mode == "image_to_video"
