"""The shapes of section 2 of the public contract."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from worker import answers
from worker.answers import Stopwatch
from worker.artifacts import Delivery, Timings, VideoFile
from worker.errors import Cancelled, InvalidRequest, JobTimeout
from worker.models import I2V_A14B, T2V_A14B
from worker.request import VideoRequest, parse

RESULT_FIELDS = [
    *("index", "status", "job_id", "video_url", "thumbnail_url", "duration_seconds", "num_frames", "resolution"),
    *("fps", "seed", "prompt", "negative_prompt", "model_version", "mode", "parameters", "warnings", "size_bytes"),
    *("sha256", "timings", "gpu", "cost_usd"),
]
PARAMETERS = {
    *("model", "width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2"),
    *("flow_shift", "seed", "camera_motion", "enhance_prompt", "quality_preset", "loras", "thumbnail"),
}


def video_file(**changes: Any) -> VideoFile:
    values: dict[str, Any] = {
        "path": Path("/secret/place/0.mp4"),
        "poster": Path("/secret/place/0.jpg"),
        "width": 832,
        "height": 480,
        "num_frames": 81,
        "fps": 16,
        "size_bytes": 1234,
        "sha256": "ab" * 32,
    }
    return VideoFile(**{**values, **changes})


def request_of(**fields: object) -> VideoRequest:
    return parse({"prompt": "a cat", "seed": 7, **fields}, default_job_id="j").videos[0]


def result_of(request: VideoRequest, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "job_id": "abc-123",
        "request": request,
        "spec": T2V_A14B,
        "prompt": "a cat, cinematic",
        "parameters": {"flow_shift": 12.0, "scheduler": "UniPC"},
        "warnings": ["from the engine"],
        "video": video_file(),
        "delivery": Delivery("https://cdn.test/0.mp4", "https://cdn.test/0.jpg"),
        "timings": {"generate": 1.5, "total": 2.0},
        "gpu": "NVIDIA H100",
        "cost_usd": None,
    }
    return answers.video_result(**{**values, **changes})


def test_a_result_has_the_fields_of_the_contract_and_no_other() -> None:
    result = result_of(request_of())
    assert list(result) == RESULT_FIELDS
    assert {key: value for key, value in result.items() if key not in ("parameters", "negative_prompt")} == {
        "index": 0,
        "status": "completed",
        "job_id": "abc-123",
        "video_url": "https://cdn.test/0.mp4",
        "thumbnail_url": "https://cdn.test/0.jpg",
        "duration_seconds": 5.062,
        "num_frames": 81,
        "resolution": "832x480",
        "fps": 16,
        "seed": 7,
        "prompt": "a cat, cinematic",
        "model_version": "wan2.2-t2v-a14b",
        "mode": "text_to_video",
        "warnings": ["from the engine"],
        "size_bytes": 1234,
        "sha256": "ab" * 32,
        "timings": {"generate": 1.5, "total": 2.0},
        "gpu": "NVIDIA H100",
        "cost_usd": None,
    }


def test_parameters_hold_every_effective_value() -> None:
    request = request_of(quality_preset="draft", guidance_scale=9, loras=[{"source": "https://a.test/x?sig=1"}])
    parameters = result_of(request)["parameters"]
    assert parameters.keys() == PARAMETERS | {"scheduler"}
    assert (parameters["num_inference_steps"], parameters["guidance_scale"]) == (30, 4.0)
    assert parameters["flow_shift"] == 12.0  # what the engine settled, in the place of the request's null
    assert parameters["loras"] == [{"scale": 1.0, "expert": "both"}]


def test_strength_is_a_parameter_of_video_to_video_alone() -> None:
    request = request_of(reference_video_url="https://example.com/a.mp4", strength=0.4)
    assert result_of(request)["parameters"]["strength"] == 0.4
    assert "strength" not in result_of(request_of())["parameters"]


def test_size_and_frames_are_those_of_the_video_that_was_made() -> None:
    request = request_of(reference_image_url="https://example.com/a.png")
    result = result_of(request, spec=I2V_A14B, video=video_file(width=640, height=624, num_frames=5, fps=10))
    assert (result["resolution"], result["num_frames"], result["duration_seconds"]) == ("640x624", 5, 0.5)
    assert (result["parameters"]["width"], result["parameters"]["height"]) == (640, 624)
    assert (result["mode"], result["model_version"]) == ("image_to_video", "wan2.2-i2v-a14b")


def test_warnings_of_the_request_come_before_those_of_the_engine() -> None:
    lines = result_of(request_of(num_frames=82))["warnings"]
    assert lines == ["num_frames: 82 lowered to 81 (the model makes 4k + 1 frames)", "from the engine"]


def test_no_local_path_and_no_url_of_the_request_leaves() -> None:
    request = request_of(reference_image_url="https://example.com/a.png?token=abc")
    text = json.dumps(result_of(request), allow_nan=False)
    assert "/secret" not in text
    assert "token=abc" not in text


def test_a_result_can_be_sent_as_json() -> None:
    result = result_of(request_of(), delivery=Delivery("https://cdn.test/0.mp4", None), cost_usd=0.0123)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_failure_has_the_shape_of_the_contract() -> None:
    failure = answers.video_failure("abc-123", 2, InvalidRequest("is wrong", path="job_request_params[2].fps"))
    assert failure == {
        "index": 2,
        "status": "failed",
        "job_id": "abc-123",
        "error": {
            "code": "invalid_request",
            "message": "job_request_params[2].fps: is wrong",
            "path": "job_request_params[2].fps",
            "retryable": False,
        },
    }


GOOD = {"index": 0, "status": "completed", "job_id": "j"}
FAILED = answers.video_failure("j", 1, JobTimeout("too long"))
STOPPED = answers.video_failure("j", 2, Cancelled())


@pytest.mark.parametrize(
    ("videos", "status"),
    [
        ([GOOD], "completed"),
        ([GOOD, GOOD], "completed"),
        ([GOOD, FAILED], "partial"),
        ([FAILED, GOOD], "partial"),
        ([FAILED], "failed"),
        ([FAILED, STOPPED], "failed"),
    ],
)
def test_the_answer_of_a_job(videos: list[dict[str, Any]], status: str) -> None:
    answer = answers.job_answer("j", videos, 312.3999)
    assert answer["job_id"] == "j"
    assert answer["status"] == status
    assert answer["videos"] == videos
    assert answer["timings"] == {"total": 312.4}
    if status == "failed":
        assert isinstance(answer["error"], str)  # RunPod marks a job FAILED for a string alone
        assert json.loads(answer["error"]) == FAILED["error"]
    else:
        assert "error" not in answer
    json.dumps(answer, allow_nan=False)


def test_the_answer_of_a_job_that_could_not_start() -> None:
    answer = answers.refused_answer("j", InvalidRequest("is missing, 猫", path="prompt"), 0.00123)
    assert {key: answer[key] for key in ("job_id", "status", "videos", "timings")} == {
        "job_id": "j",
        "status": "failed",
        "videos": [],
        "timings": {"total": 0.001},
    }
    assert json.loads(answer["error"]) == {
        "code": "invalid_request",
        "message": "prompt: is missing, 猫",
        "path": "prompt",
        "retryable": False,
    }


def test_cost() -> None:
    assert answers.cost_usd(3600, None) is None
    assert answers.cost_usd(3600, 0.0) == 0.0
    assert answers.cost_usd(1800, 3.0) == 1.5
    assert answers.cost_usd(1, 3.59) == 0.000997


def test_a_stopwatch_keeps_the_stages_in_their_order() -> None:
    watch = Stopwatch()
    with watch.stage("inputs"):
        time.sleep(0.02)
    watch.add("generate", 1.23456)
    with watch.stage("inputs"):
        pass
    read = watch.read()
    assert list(read) == ["inputs", "generate", "total"]
    assert read["generate"] == 1.235
    assert 0.019 <= read["inputs"] <= read["total"]


def test_a_stage_that_fails_is_counted_all_the_same() -> None:
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.stage("upload"):
        raise KeyError("x")
    assert "upload" in watch.read()


def test_timings_are_rounded_to_milliseconds() -> None:
    assert Timings({"load": 0.12345, "generate": 2.0}).as_dict() == {"load": 0.123, "generate": 2.0}
