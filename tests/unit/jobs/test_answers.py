"""The shapes of section 2 of the public contract."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from worker.base import timing
from worker.base.errors import Cancelled, InvalidRequest, JobTimeout
from worker.base.timing import Stopwatch
from worker.delivery.storage.base import Delivery
from worker.jobs import answers
from worker.media import VideoFile
from worker.request import VideoRequest
from worker.request.catalogue import I2V_A14B, T2V_A14B
from worker.request.parse import parse

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
    answer = answers.job_answer("j", videos, {"accept": 0.4, "total": 312.4})
    assert answer["job_id"] == "j"
    assert answer["status"] == status
    assert answer["videos"] == videos
    assert answer["timings"] == {"accept": 0.4, "total": 312.4}
    if status == "failed":
        assert isinstance(answer["error"], str)  # RunPod marks a job FAILED for a string alone
        assert json.loads(answer["error"]) == FAILED["error"]
    else:
        assert "error" not in answer
    json.dumps(answer, allow_nan=False)


def test_the_answer_of_a_job_that_could_not_start() -> None:
    answer = answers.refused_answer(
        "j", InvalidRequest("is missing, 猫", path="prompt"), {"accept": 0.001, "total": 0.001}
    )
    assert {key: answer[key] for key in ("job_id", "status", "videos", "timings")} == {
        "job_id": "j",
        "status": "failed",
        "videos": [],
        "timings": {"accept": 0.001, "total": 0.001},
    }
    assert json.loads(answer["error"]) == {
        "code": "invalid_request",
        "message": "prompt: is missing, 猫",
        "path": "prompt",
        "retryable": False,
    }


def test_cost() -> None:
    assert timing.cost_usd(3600, None) is None
    assert timing.cost_usd(3600, 0.0) == 0.0
    assert timing.cost_usd(1800, 3.0) == 1.5
    assert timing.cost_usd(1, 3.59) == 0.000997


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def passes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_every_moment_belongs_to_one_stage(clock: Clock) -> None:
    watch = Stopwatch(clock)
    with watch.stage("inputs"):
        clock.passes(0.5)
    clock.passes(0.25)  # for the GPU's turn
    watch.lap("waiting")
    clock.passes(10.0)
    watch.split({"load": 1.0, "text": 2.0, "generate": 6.5})
    clock.passes(0.125)  # for a thread
    with watch.stage("upload"):
        clock.passes(3.0)
    assert watch.read() == {
        "inputs": 0.5,
        "load": 1.0,
        "text": 2.0,
        "generate": 6.5,
        "upload": 3.0,
        "waiting": 0.875,  # 0.25, what the engine did not name of its 10 s, and 0.125
        "total": 13.875,
    }
    assert watch.worked_s() == 13.0


def test_waiting_and_total_stand_last_and_are_always_there(clock: Clock) -> None:
    watch = Stopwatch(clock)
    assert watch.read() == {"waiting": 0.0, "total": 0.0}
    clock.passes(1.0)
    watch.lap("waiting")
    with watch.stage("inputs"):
        pass
    assert list(watch.read()) == ["inputs", "waiting", "total"]


def test_a_stage_that_fails_is_counted_all_the_same(clock: Clock) -> None:
    watch = Stopwatch(clock)

    def fails() -> None:
        clock.passes(2.0)
        raise KeyError("x")

    with pytest.raises(KeyError), watch.stage("upload"):
        fails()
    assert watch.read() == {"upload": 2.0, "waiting": 0.0, "total": 2.0}


def test_a_stage_that_comes_again_adds_up(clock: Clock) -> None:
    watch = Stopwatch(clock)
    for _ in range(2):
        with watch.stage("upload"):
            clock.passes(2.0)
    assert watch.read()["upload"] == 4.0


def test_stages_that_ran_longer_than_the_lap_leave_no_negative_wait(clock: Clock) -> None:
    watch = Stopwatch(clock)
    clock.passes(1.0)
    watch.split({"generate": 1.0000001})
    assert watch.seconds()["waiting"] == 0.0


def test_what_is_around_named_stages_may_have_a_name_too(clock: Clock) -> None:
    """A try that failed: its seconds are the stage's in hand, and those of the tries before it are named."""
    watch = Stopwatch(clock)
    clock.passes(5.0)
    watch.split({"retry": 2.0}, around="generate")
    assert watch.read() == {"retry": 2.0, "generate": 3.0, "waiting": 0.0, "total": 5.0}
    assert watch.worked_s() == 5.0


def test_the_total_is_the_sum_of_what_is_told(clock: Clock) -> None:
    watch = Stopwatch(clock)
    for stage in ("inputs", "load", "text", "generate", "encode", "upload"):
        clock.passes(0.0004999)
        watch.lap(stage)
    read = watch.read()
    assert read["total"] == sum(seconds for stage, seconds in read.items() if stage != "total") == 0.0
    assert sum(watch.seconds().values()) == pytest.approx(6 * 0.0004999)


def test_the_stopwatch_runs_by_the_machines_clock() -> None:
    watch = Stopwatch()
    began = time.perf_counter()
    with watch.stage("inputs"):
        time.sleep(0.02)
    assert 0.02 <= watch.seconds()["inputs"] <= time.perf_counter() - began


def test_the_cold_start_of_the_first_video_stands_beside_its_parameters() -> None:
    told = {"begun": 4.2, "waited": 0.1}
    first = result_of(request_of(), parameters={"dtype": "bfloat16", "cold_start": told})
    assert first["cold_start"] == told
    assert first["parameters"]["dtype"] == "bfloat16"
    assert "cold_start" not in first["parameters"]
    assert "cold_start" not in result_of(request_of(), parameters={"dtype": "bfloat16"})
