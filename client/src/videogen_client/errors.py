"""What can go wrong, each with `retryable`: whether the same call may succeed later.

VideoGenError
├── VideoFailed             the worker made no video; `code`, `path` and `problems` say why
│   └── JobRefused          the payload is at fault: correct it
├── Timeout                 the job was not done in time, and goes on: `result(error.job)` waits for it again
├── JobNotFound             the endpoint does not know the job: RunPod keeps results for 30 minutes
├── CancelRefused           the job runs on
├── EndpointUnavailable     no answer, 429 or 5xx, after the retries
├── EndpointRefused         the API key or the endpoint id is wrong
├── UnexpectedAnswer        what answered is not this worker
├── DownloadFailed          a file could not be fetched
│   └── DownloadCorrupt     what arrived is not what the worker made
└── InvalidSignature        a webhook that is not genuine
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Job:
    """A job that was sent. `id` is the endpoint's, `job_id` the caller's own; `payload` is there where it was sent
    by this process.
    """

    id: str
    job_id: str | None = None
    payload: Mapping[str, Any] | None = field(default=None, repr=False)


class VideoGenError(Exception):
    """Of all errors. `job_id` is the one under which the payload was sent: send it again under the same."""

    retryable = False

    def __init__(self, message: str, *, job: Job | None = None, job_id: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.job = job
        self.job_id = job_id if job is None else job.job_id


class VideoFailed(VideoGenError):
    """`code` is one of docs/errors.md; `path` the field at fault; `problems` all of them, where there are several."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str | None = None,
        retryable: bool = False,
        problems: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.path = path
        self.retryable = retryable
        self.problems = list(problems)

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class JobRefused(VideoFailed):
    pass


class Timeout(VideoGenError):
    retryable = True


class JobNotFound(VideoGenError):
    retryable = True


class CancelRefused(VideoGenError):
    pass


class EndpointUnavailable(VideoGenError):
    """`may_be_taken` is False where the last try was surely not carried out: no connection, 429 or 503."""

    retryable = True

    def __init__(self, message: str, *, may_be_taken: bool = True) -> None:
        super().__init__(message)
        self.may_be_taken = may_be_taken


class EndpointRefused(VideoGenError):
    pass


class UnexpectedAnswer(VideoGenError):
    pass


class DownloadFailed(VideoGenError):
    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class DownloadCorrupt(DownloadFailed):
    pass


class InvalidSignature(VideoGenError):
    pass
