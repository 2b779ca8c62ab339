"""Payloads that nobody would think of: each becomes a job, or an InvalidRequest that says what to change.

PARSED payloads go through `parse` alone, ANSWERED through the whole flow on the demo model, where every answer must
have the shape of sections 2 and 4 of the public contract.
"""

from __future__ import annotations

import json
import math
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from jsonschema import Draft202012Validator

from tests.flow.conftest import Answer, Runner, local_path
from tests.kits.payloads import PAYLOADS, PROFILE
from tests.kits.slow import slow
from worker.base.errors import InvalidRequest, WorkerError
from worker.request import Job, schema
from worker.request.contact import contact
from worker.request.parse import DEFAULT_LIMITS, parse
from worker.request.texts import is_job_id

PARSED = 150
PARSED_SLOWLY = 1_000
COMPARED = 60
ANSWERED = 30
# A video takes seconds, a refusal milliseconds: payloads that would make more than these are left out.
MAX_VIDEOS_MADE = 4

ROOT = Path(__file__).parents[2]
LEAKS = ("Traceback", 'File "', "site-packages", str(ROOT), str(Path.home()), "pydantic", "Error(", " object at 0x")


def check_error(error: WorkerError) -> None:
    told = error.as_dict()
    text = json.dumps(told, ensure_ascii=False, allow_nan=False)
    text.encode()
    assert told["path"] is None or isinstance(told["path"], str)
    assert len(text) < 50_000
    assert not [leak for leak in LEAKS if leak in text]


def check_job(job: Job) -> None:
    assert is_job_id(job.job_id)
    assert 1 <= len(job.videos) <= DEFAULT_LIMITS.max_videos_per_job
    for index, video in enumerate(job.videos):
        stride = 32 if video.model == "5b" else 16
        assert video.index == index
        assert 1 <= len(video.prompt) <= 4000
        assert video.num_frames % 4 == 1
        assert 5 <= video.num_frames <= 161
        assert 1 <= video.fps <= 60
        assert 1 <= video.num_inference_steps <= 100
        assert 1 <= video.guidance_scale <= 20
        assert 1 <= video.guidance_scale_2 <= 20
        assert 0 <= video.guidance_until <= 1
        assert video.flow_shift is None or 0.5 <= video.flow_shift <= 25
        assert 0 <= video.seed <= 2**63 - 1
        assert 0 < video.strength <= 1
        assert all(math.isfinite(lora.scale) for lora in video.loras)
        sides = [side for side in (video.width, video.height) if side is not None]
        assert len(sides) == 2 or video.reference_image_url or video.reference_video_url
        assert all(side % stride == 0 and 256 <= side <= 1920 for side in sides)
        assert math.prod(sides) <= DEFAULT_LIMITS.max_pixels
        assert video.area <= DEFAULT_LIMITS.max_pixels
        for text in (video.prompt, video.negative_prompt, *video.warnings):
            text.encode()


@pytest.mark.parametrize("examples", [PARSED, *slow(PARSED_SLOWLY)])
def test_a_payload_becomes_a_job_or_a_refusal(examples: int) -> None:
    jobs, refusals = 0, 0

    @settings(PROFILE, max_examples=examples)
    @given(PAYLOADS)
    def parsed(payload: object) -> None:
        nonlocal jobs, refusals
        found = contact(payload, default_job_id="rp-1")
        assert is_job_id(found.job_id)
        try:
            job = parse(payload, default_job_id="rp-1")
        except InvalidRequest as refused:
            check_error(refused)
            refusals += 1
            return
        check_job(job)
        assert (job.job_id, job.webhook_url, job.webhook_events) == (found.job_id, found.webhook_url, found.events)
        assert len(job.videos) == found.video_count
        assert {video.prompt for video in job.videos} <= {*found.private_texts}
        jobs += 1

    parsed()
    # Of either kind enough, or the payloads have become too wild or too tame to show anything.
    assert min(jobs, refusals) > examples / 20, (jobs, refusals)


@settings(PROFILE, max_examples=COMPARED)
@given(PAYLOADS)
def test_what_the_parser_takes_the_schema_takes(payload: object) -> None:
    try:
        job = parse(payload, default_job_id="rp-1")
    except InvalidRequest:
        return
    # The schema cannot trim a prompt before it counts.
    if all(max(len(video.prompt), len(video.negative_prompt)) < 4000 for video in job.videos):
        VALIDATOR.validate(payload)


VALIDATOR = Draft202012Validator(schema.input_schema())


def tiny(payload: Any) -> Any:
    """The same payload with every video that would be made at its smallest."""
    if isinstance(payload.get("job_request_params"), list):
        return {**payload, "job_request_params": [smallest(entry) for entry in payload["job_request_params"]]}
    return smallest(payload)


def smallest(video: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in video.items() if name != "quality_preset"}
    return {**kept, "height": 256, "width": 256, "num_frames": 5, "num_inference_steps": 1}


def check_answer(answer: Answer, videos: int | None) -> None:
    """`videos`: how many the job asks for, None where it cannot start."""
    json.dumps(answer, allow_nan=False)
    json.dumps(answer, ensure_ascii=False).encode()
    assert answer.keys() - {"error", "problems"} == {"job_id", "status", "videos", "timings"}
    assert answer["timings"]["total"] >= 0
    delivered = [video for video in answer["videos"] if video["status"] == "completed"]
    failed = [video for video in answer["videos"] if video["status"] == "failed"]
    assert len(delivered) + len(failed) == len(answer["videos"])
    assert [video["index"] for video in answer["videos"]] == list(range(len(answer["videos"])))
    if videos is None:
        assert answer["videos"] == []
    assert answer["status"] == ("failed" if not delivered else "partial" if failed else "completed")
    assert ("error" in answer) == (not delivered)
    errors = [video["error"] for video in failed]
    if not delivered:
        assert isinstance(answer["error"], str)
        errors.append(json.loads(answer["error"]))
    for error in errors:
        check_told(error)
    for video in delivered:
        assert video["job_id"] == answer["job_id"]
        assert local_path(video["video_url"]).stat().st_size == video["size_bytes"]
        assert (video["resolution"], video["num_frames"], video["model_version"]) == ("256x256", 5, "demo")


def kinds_of_error(of: type[WorkerError] = WorkerError) -> dict[str, bool]:
    return {kind.code: kind.retryable for kind in of.__subclasses__()}


def check_told(error: dict[str, Any]) -> None:
    assert error.keys() == {"code", "message", "path", "retryable"}
    assert error["retryable"] is kinds_of_error()[error["code"]]
    assert error["code"] != "internal", error
    assert not [leak for leak in (*LEAKS, "/tmp", "10.0.0.1", "169.254") if leak in json.dumps(error)]


def test_every_payload_is_answered_in_the_shape_of_the_contract(run: Runner) -> None:
    numbers = count()
    made = 0
    statuses: set[str] = set()

    @settings(PROFILE, max_examples=ANSWERED)
    @given(PAYLOADS)
    @example({"prompt": "a cat"})
    @example({"job_request_params": [{"prompt": "a cat"}, {"prompt": "a cat", "loras": [{"source": "none"}]}]})
    def answered(payload: Any) -> None:
        nonlocal made
        videos: int | None = None
        try:
            job = parse(payload, default_job_id="j")
        except InvalidRequest:
            pass
        else:
            payload = tiny(payload)
            videos = len(job.videos)
            plain = [video for video in job.videos if video.mode == "text_to_video" and not video.loras]
            if made + len(plain) > MAX_VIDEOS_MADE:
                return
            made += len(plain)
        answer = run(payload, job_id=f"random-{next(numbers)}")
        check_answer(answer, videos)
        statuses.add(answer["status"])

    answered()
    assert statuses == {"completed", "partial", "failed"}


@pytest.mark.parametrize("depth", [100, 900, 5000])
def test_a_deep_payload_is_answered(run: Runner, depth: int) -> None:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    answer = run({"prompt": "", "deep": deep})
    check_answer(answer, None)
    assert json.loads(answer["error"])["code"] == "invalid_request"


def test_a_flood_of_mistakes_is_answered_in_few_words(run: Runner) -> None:
    slips = {f"{name}{index}": 1 for index in range(100) for name in ("promptx", "seedx")}
    answer = run({"webhook_events": ["x"] * 10_000, "job_request_params": [{"prompt": "", **slips}] * 16})
    check_answer(answer, None)
    assert len(answer["error"]) < 50_000
