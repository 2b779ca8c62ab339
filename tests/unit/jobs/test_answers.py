"""The shapes of section 2 of the public contract."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from worker.base import timing
from worker.base.errors import Cancelled, InvalidRequest, JobTimeout, Problem
from worker.base.timing import Stopwatch
from worker.delivery.storage.base import Delivery
from worker.engine import Video
from worker.jobs import answers
from worker.jobs.make import Generated, Made
from worker.media import VideoFile
from worker.media.marks.provenance import Provenance
from worker.request import CATALOGUE, VideoRequest, choose
from worker.request.parse import parse
from worker.request.plan import MemoryPlan, Shape

PLAN = MemoryPlan("bf16", "resident", "resident", False, 0, 0, ())

SNAPSHOTS = Path(__file__).with_name("snapshots")


def check_snapshot(name: str, value: object) -> None:
    """The public shape of `value`, its fields in their order, is the one in the file: change both on purpose."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    assert text == (SNAPSHOTS / f"{name}.json").read_text(encoding="utf-8")


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
        "provenance": Provenance("trainedAlgorithmicMedia", "xmp:iid:1", signed=True, timestamped=True),
    }
    return VideoFile(**{**values, **changes})


def request_of(**fields: object) -> VideoRequest:
    return parse({"prompt": "a cat", "seed": 7, **fields}, default_job_id="j").videos[0]


def result_of(request: VideoRequest, **changes: Any) -> dict[str, Any]:
    """`changes` are of the video that was made, the delivery, its cost, and what the engine reports."""
    cost_usd, delivery = changes.pop("cost_usd", None), changes.pop("delivery", None)
    parameters = changes.pop("parameters", {"flow_shift": 12.0, "scheduler": "UniPC"})
    file = changes.pop("file", video_file())
    spec = choose(CATALOGUE, request)
    video = Video(request, spec, PLAN, "a cat, cinematic")
    shape = changes.pop("shape", Shape(832, 480, 81))
    generated = Generated(shape, parameters, ("from the engine",), changes.pop("cold_start", None))
    assert not changes
    return answers.video_result(
        Made(video, generated, file, None),
        Delivery("https://cdn.test/0.mp4", "https://cdn.test/0.jpg") if delivery is None else delivery,
        job_id="abc-123",
        timings={"generate": 1.5, "total": 2.0},
        gpu="NVIDIA H100",
        cost_usd=cost_usd,
    )


def test_the_result_of_a_text() -> None:
    request = request_of(quality_preset="draft", guidance_scale=9, loras=[{"source": "https://a.test/x?sig=1"}])
    check_snapshot("result_text", result_of(request))


def test_the_result_of_a_video_that_was_lowered_and_is_the_first_of_its_worker() -> None:
    """Warnings of the request come before those of the engine; strength is a parameter of this mode alone."""
    request = request_of(reference_video_url="https://example.com/a.mp4", strength=0.4, num_frames=82, seed=0)
    told = {"begun": 4.2, "waited": 0.1}
    delivery = Delivery("https://cdn.test/0.mp4", None)
    check_snapshot("result_video", result_of(request, cold_start=told, delivery=delivery, cost_usd=0.0123))


def test_size_and_frames_are_those_of_the_file_and_the_parameters_say_what_was_generated() -> None:
    request = request_of(
        reference_image_url="https://example.com/a.png", negative_prompt="no dogs", fps=10, target_fps=25
    )
    file = video_file(width=640, height=624, num_frames=13, fps=25)
    result = result_of(request, file=file, shape=Shape(640, 624, 5))
    check_snapshot("result_image", result)


def test_a_file_without_marks_says_so_and_what_went_wrong_with_them_is_a_warning() -> None:
    assert result_of(request_of(), file=video_file(provenance=None))["provenance"] is None
    noted = Provenance("trainedAlgorithmicMedia", "xmp:iid:1", notes=("provenance: not signed",))
    result = result_of(request_of(), file=video_file(provenance=noted))
    assert (result["provenance"]["c2pa"], result["warnings"][-1]) == ("off", "provenance: not signed")


def test_no_local_path_and_no_url_of_the_request_leaves() -> None:
    request = request_of(reference_image_url="https://example.com/a.png?token=abc")
    text = json.dumps(result_of(request), allow_nan=False)
    assert "/secret" not in text
    assert "token=abc" not in text


def test_a_failure() -> None:
    error = InvalidRequest("is wrong", path="job_request_params[2].fps")
    check_snapshot("failure", answers.video_failure("abc-123", 2, error))


def test_several_problems_stand_beside_the_error() -> None:
    problems = [Problem("prompt", "is missing"), Problem("fps", "must be 1 to 60, not 61")]
    error = InvalidRequest.of(problems)
    check_snapshot("failure_of_several", answers.video_failure("abc-123", None, error))
    check_snapshot("answer_refused_for_several", answers.refused_answer("abc-123", error, {"total": 0.1}))


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
def test_the_status_of_a_job(videos: list[dict[str, Any]], status: str) -> None:
    assert answers.job_answer("j", videos, {})["status"] == status


def test_the_answers_of_jobs() -> None:
    """`error` is a string: RunPod marks a job FAILED for that alone."""
    timings = {"accept": 0.4, "total": 312.4}
    refusal = InvalidRequest("is missing, 猫", path="prompt")
    check_snapshot("answer_partial", answers.job_answer("j", [GOOD, FAILED], timings))
    check_snapshot("answer_failed", answers.job_answer("j", [FAILED, STOPPED], timings))
    check_snapshot("answer_refused", answers.refused_answer("j", refusal, timings))


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
