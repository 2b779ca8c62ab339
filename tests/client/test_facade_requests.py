"""What a request to the facade may hold, and what the endpoint is sent for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tests.kits.facade_kit import facade as facade  # fixtures
from tests.kits.facade_kit import http as http
from tests.kits.facade_kit import sent
from tests.kits.facade_kit import speak as speak
from tests.kits.paid_endpoint import PaidEndpoint

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def test_a_picture_goes_with_the_request(speak: Callable[..., openai.OpenAI], endpoint: PaidEndpoint) -> None:
    speak().videos.create(
        prompt="it moves",
        input_reference=("fox.png", PNG, "image/png"),
        extra_body={
            "num_inference_steps": 4,
            "thumbnail": False,
            "extra_params": {"seed": 7, "camera_motion": "static"},
        },
    )
    payload = sent(endpoint)
    assert payload.pop("reference_image_url").startswith("data:image/png;base64,iVBORw0KGgo")
    payload.pop("job_id")
    assert payload == {
        "prompt": "it moves",
        "num_inference_steps": 4,
        "thumbnail": False,
        "seed": 7,
        "camera_motion": "static",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"size": "832x480"}, {"width": 832, "height": 480}),
        ({"seconds": 3}, {"duration_seconds": 3.0}),
        ({"input_reference": "https://example.com/a.png"}, {"reference_image_url": "https://example.com/a.png"}),
        (
            {"input_reference": {"image_url": "https://example.com/a.png"}},
            {"reference_image_url": "https://example.com/a.png"},
        ),
        ({"model": "sora-2", "user": "me", "n": 1, "seed": None}, {}),
        ({"model": "5b", "quality_preset": "draft"}, {"model": "5b", "quality_preset": "draft"}),
        ({"extra_params": {"loras": [{"source": "a.safetensors"}]}}, {"loras": [{"source": "a.safetensors"}]}),
    ],
)
def test_fields_become_those_of_the_worker(
    http: httpx.Client, endpoint: PaidEndpoint, fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert http.post("/v1/videos", json={"prompt": "a fox", **fields}).status_code == 200
    payload = sent(endpoint)
    payload.pop("job_id")
    assert payload == {"prompt": "a fox", **expected}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": " "}, "prompt"),
        ({"size": "720p"}, "size"),
        ({"seconds": "long"}, "seconds"),
        ({"input_reference": {"file_id": "file-1"}}, "input_reference"),
        ({"nmu_frames": 5}, "nmu_frames"),
        ({"extra_params": [1]}, "extra_params"),
        ({"extra_params": {"num_outputs": 2}}, "num_outputs"),
        ({"job_id": "mine"}, "job_id"),
    ],
)
def test_what_is_wrong_is_refused_at_its_field(
    http: httpx.Client, endpoint: PaidEndpoint, fields: dict[str, Any], param: str
) -> None:
    answer = http.post("/v1/videos", json={"prompt": "a fox", **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert set(error) == {"message", "type", "param", "code"}
    assert endpoint.paid == {}


def test_a_form_says_where_it_is_wrong(http: httpx.Client) -> None:
    answers = [
        http.post("/v1/videos", files={"prompt": (None, "a fox"), name: (None, value)})
        for name, value in (("seed", "seven"), ("extra_params[loras][][source]", "a"), ("extra_params", "{"))
    ]
    assert [(each.status_code, each.json()["error"]["param"]) for each in answers] == [
        (400, "seed"),
        (400, "extra_params"),
        (400, "extra_params"),
    ]
    assert http.post("/v1/videos", content=b"{").status_code == 400
    video = http.post("/v1/videos", files={"prompt": (None, "a"), "input_reference": ("a.mp4", b"1", "video/mp4")})
    assert video.json()["error"]["param"] == "input_reference"


def test_the_same_idempotency_key_is_the_same_video(http: httpx.Client, endpoint: PaidEndpoint) -> None:
    def post(prompt: str, key: str = "order-1", bearer: str = "key-a") -> httpx.Response:
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {bearer}"}
        return http.post("/v1/videos", json={"prompt": prompt}, headers=headers)

    first, second, other = post("a fox"), post("a fox"), post("a fox", bearer="key-b")
    assert first.json()["id"] == second.json()["id"] != other.json()["id"]
    refused = post("a cat")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_error")
    assert sorted(endpoint.paid.values()) == [1, 1]


def test_a_body_that_is_too_large_is_not_read(http: httpx.Client) -> None:
    stated = http.post("/v1/videos", json={"prompt": "a fox", "input_reference": "data:," + "a" * 10_000_000})
    silent = http.post("/v1/videos", content=iter([b"x" * 1_000_000] * 11))
    assert (stated.status_code, silent.status_code) == (413, 413)
    assert stated.json()["error"]["code"] == silent.json()["error"]["code"] == "too_large"
