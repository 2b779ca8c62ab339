"""What RunPod says of a job, in words: the states, the errors of its API, and the error that a worker returned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import requests

from worker.cli.failures import CommandFailed

RUN_LIMIT_BYTES = 10_000_000  # RunPod refuses a larger request to /run
RUNNING = ("IN_QUEUE", "IN_PROGRESS")
# What the SDK raises: RuntimeError for 401 alone, KeyError for an answer without an id, the rest is that of requests.
SDK_FAILURES = (RuntimeError, KeyError, requests.RequestException)
_SHOWN_CHARACTERS = 500
_STATUSES: Mapping[int, str] = {
    400: "RunPod does not accept the request (400)",
    401: "RunPod does not accept the API key (401): set RUNPOD_API_KEY to a key of the endpoint's account",
    403: "the API key may not use this endpoint (403): give it the right in RunPod's console, or use another key",
    404: "RunPod knows no such endpoint or job (404): check --endpoint and --job; results are kept for 30 minutes",
    413: "the request is too large for RunPod (413): put images behind a URL",
    429: "too many requests for this endpoint (429): wait a minute, then try again",
}


def check_size(request: Mapping[str, Any]) -> None:
    """Raises CommandFailed for a request that RunPod would refuse for its size."""
    size = len(json.dumps(request).encode())
    if size > RUN_LIMIT_BYTES:
        raise CommandFailed(
            f"error: the request has {size / 1e6:.1f} MB; RunPod takes {RUN_LIMIT_BYTES / 1e6:g} MB at most: "
            "send a smaller image, or put it behind an http(s) URL"
        )


def is_passing(failure: Exception) -> bool:
    """Whether the same request may succeed in a moment."""
    if isinstance(failure, requests.HTTPError) and failure.response is not None:
        return failure.response.status_code == 429 or failure.response.status_code >= 500
    return isinstance(failure, requests.ConnectionError | requests.Timeout | requests.exceptions.RetryError)


def explained(failure: Exception) -> CommandFailed:
    """An exception of RunPod's SDK as a message for a person."""
    if isinstance(failure, requests.HTTPError) and failure.response is not None:
        status = failure.response.status_code
        text = _STATUSES.get(status, f"RunPod answered {status}: try again in a minute")
        said = failure.response.text.strip()[:_SHOWN_CHARACTERS]
        return CommandFailed(f"error: {text}" + (f"\nRunPod says: {said}" if status == 400 and said else ""))
    if isinstance(failure, requests.exceptions.RetryError):
        return CommandFailed(f"error: {_STATUSES[429]}")
    if isinstance(failure, RuntimeError):
        return CommandFailed(f"error: {_STATUSES[401]}")
    if isinstance(failure, KeyError | requests.exceptions.JSONDecodeError):
        return CommandFailed("error: RunPod answered something that cannot be read: try again in a minute")
    return CommandFailed("error: no answer from RunPod: check the network, then try again")


def answer_of(state: Mapping[str, Any]) -> dict[str, Any] | None:
    """The worker's answer, or None where it does not have the form that this worker returns; links must be text."""
    output = state.get("output")
    if not isinstance(output, dict) or not isinstance(output.get("videos"), list):
        return None
    return output if all(_is_video(video) for video in output["videos"]) else None


def _is_video(video: object) -> bool:
    if not isinstance(video, dict):
        return False
    if video.get("status") == "completed":
        poster = video.get("thumbnail_url")
        shown = video.get("video_url") or video.get("preview_url")  # with preview_only there is no video
        return isinstance(shown, str) and (poster is None or isinstance(poster, str))
    return isinstance(video.get("error"), dict)


def problem_of(state: Mapping[str, Any]) -> str:
    """Why a job has no video, in a line; the worker's `error` is a JSON string, RunPod's own is not always one."""
    match state.get("status"):
        case "CANCELLED":
            return "the job was cancelled"
        case "TIMED_OUT":
            return "the job ran into the endpoint's execution timeout: raise it, or send fewer or shorter videos"
    text = str(state.get("error") or "the endpoint answered something else than this worker does")
    try:
        error = json.loads(text)
    except ValueError:
        error = None
    if isinstance(error, dict) and "message" in error:
        return f"{error.get('code', 'error')}: {error['message']}"
    if isinstance(error, dict) and "error_message" in error:
        text = str(error["error_message"])
    return text[:_SHOWN_CHARACTERS]
