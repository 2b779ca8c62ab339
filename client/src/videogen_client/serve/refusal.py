"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}` with an HTTP status."""

from __future__ import annotations

from typing import Any

from ..errors import (
    CancelRefused,
    DownloadFailed,
    EndpointUnavailable,
    JobNotFound,
    JobRefused,
    Timeout,
    VideoFailed,
    VideoGenError,
)

# How a field of the worker is named here, where it has another name.
_PARAMS = {
    "width": "size",
    "height": "size",
    "duration_seconds": "seconds",
    "reference_image_url": "input_reference",
}


class Refused(Exception):
    """`param` is the field at fault, None for none. `status` is that of HTTP."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = "server_error" if self.status >= 500 else kinds.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def no_such_video(video_id: str) -> Refused:
    return Refused(404, f"there is no video {video_id}", param="video_id", code="not_found")


def param_of(path: str | None) -> str | None:
    """The field of `/v1/videos` for a field of the worker."""
    name = None if path is None else path.removeprefix("job_request_params[0].")
    return _PARAMS.get(name, name) if name is not None else None


def refusal_of(failure: VideoGenError) -> Refused:
    """What a caller gets where the backend fails while he waits."""
    if isinstance(failure, JobRefused):
        return Refused(400, failure.message, param=param_of(failure.path), code=failure.code)
    if isinstance(failure, CancelRefused):
        return Refused(409, failure.message, code="not_cancelled")
    if isinstance(failure, JobNotFound):
        return Refused(404, failure.message, code="not_found")
    if isinstance(failure, DownloadFailed) and not failure.retryable:
        return Refused(404, failure.message, code="content_gone")
    if isinstance(failure, VideoFailed):
        return Refused(409, failure.message, param=param_of(failure.path), code=failure.code)
    if isinstance(failure, EndpointUnavailable | Timeout):
        return Refused(503, failure.message, code="endpoint_unavailable")
    return Refused(502, failure.message, code="endpoint_failed")
