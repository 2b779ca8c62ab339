"""Payloads that `parse` reads: the job, its only video, or every problem by its path."""

from __future__ import annotations

from typing import Any

import pytest

from worker.base.errors import InvalidRequest
from worker.request import CATALOGUE, Job, Limits, ModelSpec, VideoRequest
from worker.request.parse import DEFAULT_LIMITS, parse

IMAGE = "https://example.com/first.png"
LAST = "https://example.com/last.png"
VIDEO = "https://example.com/clip.mp4"


def job_of(payload: object, *, limits: Limits = DEFAULT_LIMITS, catalogue: tuple[ModelSpec, ...] = CATALOGUE) -> Job:
    return parse(payload, default_job_id="rp-1", limits=limits, catalogue=catalogue)


def video_of(
    limits: Limits = DEFAULT_LIMITS, *, catalogue: tuple[ModelSpec, ...] = CATALOGUE, **fields: object
) -> VideoRequest:
    payload = {"job_request_params": [{"prompt": "a cat", **fields}]}
    (video,) = job_of(payload, limits=limits, catalogue=catalogue).videos
    return video


def refusal(payload: object, *, limits: Limits = DEFAULT_LIMITS) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        job_of(payload, limits=limits)
    return caught.value


def problems_of(payload: object, *, limits: Limits = DEFAULT_LIMITS) -> dict[str | None, str]:
    return {problem.path: problem.message for problem in refusal(payload, limits=limits).problems}


def video_problems(limits: Limits = DEFAULT_LIMITS, **fields: object) -> dict[str | None, str]:
    """Problems by the name of the video's field."""
    found = problems_of({"job_request_params": [{"prompt": "a cat", **fields}]}, limits=limits)
    return {(path or "").removeprefix("job_request_params[0]."): message for path, message in found.items()}


def flat_video(
    limits: Limits = DEFAULT_LIMITS, *, catalogue: tuple[ModelSpec, ...] = CATALOGUE, **fields: object
) -> VideoRequest:
    """The video of the flat form, whose paths have no prefix."""
    return job_of({"prompt": "a cat", **fields}, limits=limits, catalogue=catalogue).videos[0]


def flat_problems(limits: Limits = DEFAULT_LIMITS, **fields: object) -> dict[str | None, str]:
    return problems_of({"prompt": "a cat", **fields}, limits=limits)


def nested(depth: int) -> list[Any]:
    """A list in a list in a list, `depth` times."""
    outer: list[Any] = []
    for _ in range(depth):
        outer = [outer]
    return outer
