"""Every error that a caller can receive, with its webhook code and whether a retry can help.

Source of the codes: the public contract, section 4. docs/errors.md is made from the classes. Messages are written for
the caller: no traceback, host name, secret or local path may enter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a payload: the dotted path of the field and what to do about it."""

    path: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class WorkerError(Exception):
    """A failure with a place in the public contract.

    `message` says what happened and how to fix it; `path` names the field of the request, such as
    `job_request_params[2].num_frames`, or is None where no single field is at fault; `problems` has every one where
    there are several. A kind is declared with its
    `code`, `http` (the webhook's code) and `retryable`; one without them is a narrower kind of its base.
    """

    code: ClassVar[str] = "internal"
    http_code: ClassVar[int] = 500
    retryable: ClassVar[bool] = True

    def __init_subclass__(cls, *, code: str | None = None, http: int = 500, retryable: bool = True) -> None:
        if code is not None:
            cls.code, cls.http_code, cls.retryable = code, http, retryable

    def __init__(self, message: str, *, path: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.problems = tuple(problems) or (Problem(path, message),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """One error for all `problems` (at least one): `path` is that of the first, the message lists every one."""
        first = problems[0]
        rest = "".join(f"; {problem}" for problem in problems[1:])
        return cls(first.message + rest, path=first.path, problems=problems)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def as_dict(self) -> dict[str, object]:
        """The `error` object of a failure."""
        return {"code": self.code, "message": str(self), "path": self.path, "retryable": self.retryable}

    def several(self) -> dict[str, object]:
        """`problems`, which stands beside the `error` object where there are several."""
        if len(self.problems) < 2:
            return {}
        return {"problems": [{"path": problem.path, "message": problem.message} for problem in self.problems]}


class InvalidRequest(WorkerError, code="invalid_request", http=400, retryable=False):
    """A field of the payload."""


class Unsupported(WorkerError, code="unsupported", http=400, retryable=False):
    """A mode, model or LoRA that this worker does not serve."""


class InputBlocked(WorkerError, code="input_blocked", http=400, retryable=False):
    """A URL that may not be fetched."""


class InputFailed(WorkerError, code="input_failed", http=422):
    """The URL did not answer, timed out, was too large."""


class InputRefused(InputFailed, code="input_failed", http=422, retryable=False):
    """The server behind the URL refused it: asking again does not help."""


class InputInvalid(WorkerError, code="input_invalid", http=422, retryable=False):
    """Not an image or video that can be used."""


class Cancelled(WorkerError, code="cancelled", http=499):
    """The job was stopped."""

    def __init__(self, message: str = "the job was stopped before this video was finished") -> None:
        super().__init__(message)


class Internal(WorkerError, code="internal"):
    """Anything unforeseen.

    The message carries only the job id; the log carries the rest.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(f"unexpected failure in job {job_id}")


class EncodeFailed(WorkerError, code="encode_failed"):
    """The video could not be made into an MP4."""


class UploadFailed(WorkerError, code="upload_failed", http=502):
    """The video could not be stored."""


class ModelUnavailable(WorkerError, code="model_unavailable", http=503):
    """Weights missing, corrupt, not downloadable."""


class JobTimeout(WorkerError, code="timeout", http=504):
    """JOB_TIMEOUT_S passed."""


class OutOfMemory(WorkerError, code="out_of_memory", http=507, retryable=False):
    """After the one retry at a lower-memory plan."""


class SettingsError(Exception):
    """The environment cannot be used as it is: stops the worker at start, and never reaches a caller.

    `problems` holds one line for each thing to fix.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("the worker cannot start:\n" + "\n".join(f"  - {line}" for line in self.problems))
