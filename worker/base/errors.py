"""Every error that a caller can be told, with its webhook code and whether a retry can help.

    WorkerError
     x InvalidRequest       invalid_request    400   a field of the payload
     x Unsupported          unsupported        400   a mode, model or LoRA that this worker does not serve
     x InputBlocked         input_blocked      400   a URL that may not be fetched
     x InputFailed          input_failed       422   retryable: the URL did not answer, timed out, was too large
     x InputInvalid         input_invalid      422   not an image or video that can be used
     x Cancelled            cancelled          499   retryable: the job was stopped
     x Internal             internal           500   retryable: anything unforeseen
     x EncodeFailed         encode_failed      500   retryable
     x UploadFailed         upload_failed      502   retryable
     x ModelUnavailable     model_unavailable  503   retryable: weights missing, corrupt, not downloadable
     x JobTimeout           timeout            504   retryable: JOB_TIMEOUT_S passed
     x OutOfMemory          out_of_memory      507   after the one retry at a lower-memory plan

    SettingsError           stops the worker at start; never reaches a caller

Source of the codes: the public contract, section 4. Messages are written for the caller: no traceback, host name,
secret or local path may enter one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a payload: the dotted path of the field and what to do about it."""

    path: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class WorkerError(Exception):
    """A failure with a place in the public contract.

    `message` says what happened and how to mend it; `path` names the field of the request, such as
    `job_request_params[2].num_frames`, or is None where no single field is at fault.
    """

    code: ClassVar[str] = "internal"
    http_code: ClassVar[int] = 500
    retryable: ClassVar[bool] = True

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message

    def as_dict(self) -> dict[str, object]:
        """The `error` object of a video failure."""
        return {"code": self.code, "message": str(self), "path": self.path, "retryable": self.retryable}


class InvalidRequest(WorkerError):
    """One or more fields of the payload; all problems are reported at once.

    `path` is that of the first problem; the message lists every one.
    """

    code = "invalid_request"
    http_code = 400
    retryable = False

    def __init__(self, message: str, *, path: str | None = None, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, path=path)
        self.problems = tuple(problems) or (Problem(path, message),)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> InvalidRequest:
        """One error for all `problems` (at least one)."""
        first = problems[0]
        rest = "".join(f"; {problem}" for problem in problems[1:])
        return cls(first.message + rest, path=first.path, problems=problems)


class Unsupported(WorkerError):
    code = "unsupported"
    http_code = 400
    retryable = False


class InputBlocked(WorkerError):
    code = "input_blocked"
    http_code = 400
    retryable = False


class InputFailed(WorkerError):
    code = "input_failed"
    http_code = 422
    retryable = True


class InputInvalid(WorkerError):
    code = "input_invalid"
    http_code = 422
    retryable = False


class Cancelled(WorkerError):
    code = "cancelled"
    http_code = 499
    retryable = True

    def __init__(self, message: str = "the job was stopped before this video was finished") -> None:
        super().__init__(message)


class Internal(WorkerError):
    """Anything unforeseen. The message carries only the job id; the log carries the rest."""

    code = "internal"
    http_code = 500
    retryable = True

    def __init__(self, job_id: str) -> None:
        super().__init__(f"unexpected failure in job {job_id}")


class EncodeFailed(WorkerError):
    code = "encode_failed"
    http_code = 500
    retryable = True


class UploadFailed(WorkerError):
    code = "upload_failed"
    http_code = 502
    retryable = True


class ModelUnavailable(WorkerError):
    code = "model_unavailable"
    http_code = 503
    retryable = True


class JobTimeout(WorkerError):
    code = "timeout"
    http_code = 504
    retryable = True


class OutOfMemory(WorkerError):
    code = "out_of_memory"
    http_code = 507
    retryable = False


class SettingsError(Exception):
    """The environment cannot be used as it is; `problems` holds one line for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("the worker cannot start:\n" + "\n".join(f"  - {line}" for line in self.problems))
