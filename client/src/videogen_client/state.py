"""What the endpoint says of a job: its state, its progress, its answer or its failure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from .errors import Job, JobRefused, UnexpectedAnswer, VideoFailed
from .types import Answer

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
_REFUSALS = ("invalid_request", "unsupported", "input_blocked")


@dataclass(frozen=True)
class Progress:
    """`percent` is of the whole job, 0 to 100. The last one of a stream has the `answer`."""

    percent: int
    status: str
    index: int | None = None
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None
    preview_url: str | None = None
    preview_step: int | None = None
    answer: Answer | None = None


@dataclass(frozen=True)
class JobState:
    """`status` is RunPod's: IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED or TIMED_OUT."""

    id: str
    status: str
    progress: Progress | None = None
    answer: Answer | None = None
    error: VideoFailed | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED


def state_of(content: Mapping[str, Any], job: Job) -> JobState:
    """Raises UnexpectedAnswer for what is no state of a job."""
    status, output = content.get("status"), content.get("output")
    if not isinstance(status, str):
        raise UnexpectedAnswer("the endpoint answered without the status of the job", job=job)
    if status not in ENDED:
        return JobState(job.id, status, progress=_progress_of(output))
    answer = _answer_of(output)
    return JobState(job.id, status, answer=answer, error=None if status == "COMPLETED" else _error_of(content, answer))


def delivered(state: JobState, job: Job) -> Mapping[str, Any]:
    """The answer of a job that has ended, a training or one with a video.

    Raises VideoFailed where it has no video, and UnexpectedAnswer.
    """
    answer = state.answer
    if answer is not None and (_is_training(answer) or any(each["status"] == "completed" for each in answer["videos"])):
        return cast(Mapping[str, Any], answer)
    failure = state.error or (None if answer is None else _error_of({}, answer))
    if failure is None:
        raise UnexpectedAnswer("the job has ended with something that is no answer of this worker", job=job)
    failure.job, failure.job_id = job, job.job_id
    raise failure


def failure_of(said: str, code: str, message: str, problems: object = None) -> VideoFailed:
    """The worker's error, which is JSON in a string; RunPod's own is not always one: then `code` and `message`."""
    try:
        error = json.loads(said)
    except ValueError:
        error = None
    found = error if isinstance(error, dict) else {}
    if "error_message" in found:  # of RunPod's SDK
        message = str(found["error_message"])[:500]
    elif error is None and said:
        message = f"{message}: {said[:500]}"
    code = str(found.get("code") or code)
    kind = JobRefused if code in _REFUSALS else VideoFailed
    path = found.get("path")
    return kind(
        code,
        str(found.get("message") or message),
        path=path if isinstance(path, str) else None,
        retryable=bool(found.get("retryable", code not in _REFUSALS)),
        problems=problems if isinstance(problems, list) else (),
    )


def _error_of(content: Mapping[str, Any], answer: Answer | None) -> VideoFailed:
    if content.get("status") == "CANCELLED":
        return VideoFailed("cancelled", "the job was cancelled", retryable=True)
    if content.get("status") == "TIMED_OUT":
        message = "the job ran into the endpoint's execution timeout: raise it, or send fewer or shorter videos"
        return VideoFailed("timeout", message, retryable=True)
    said, problems = content.get("error"), None
    if answer is not None:
        said = said or answer.get("error")
        first: Mapping[str, Any] = answer["videos"][0] if answer.get("videos") else answer
        problems = first.get("problems")
    return failure_of(str(said or ""), "internal", "the job failed", problems)


def _answer_of(output: object) -> Answer | None:
    """None where it has not the form that the worker returns."""
    if isinstance(output, dict) and _is_training(output):
        return cast(Answer, output)
    if not isinstance(output, dict) or not isinstance(output.get("videos"), list):
        return None
    return cast(Answer, output) if all(map(_is_video, output["videos"])) else None


def _is_video(video: object) -> bool:
    """Whether it is a result whose files have addresses, or a failure with its error."""
    if not isinstance(video, dict) or video.get("status") not in ("completed", "failed"):
        return False
    if video["status"] == "failed":
        return isinstance(video.get("error"), dict)
    return all(isinstance(video.get(name), str | None) for name in ("video_url", "thumbnail_url", "preview_url"))


def _is_training(answer: Mapping[str, Any]) -> bool:
    return answer.get("status") == "completed" and isinstance(answer.get("dataset"), dict)


def _progress_of(output: object) -> Progress | None:
    """RunPod shows the last progress update of a running job as its output."""
    if not isinstance(output, dict) or not isinstance(output.get("progress"), int):
        return None

    def number(name: str) -> Any:
        value = output.get(name)
        return value if isinstance(value, int | float) else None

    preview = output.get("preview_url")
    return Progress(
        percent=min(100, max(0, output["progress"])),
        status=str(output.get("status", "running")),
        index=number("index"),
        step=number("step"),
        steps=number("steps"),
        eta_seconds=number("eta_seconds"),
        preview_url=preview if isinstance(preview, str) else None,
        preview_step=number("preview_step"),
    )
