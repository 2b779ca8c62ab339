"""Failures of the hub, the network and the volume, each as one sentence that names what to do."""

from __future__ import annotations

import httpx2
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from worker.base.errors import ModelUnavailable
from worker.base.os_errors import reason_of

# What `unavailable` can explain; anything else is a defect and is not caught.
TRANSLATED = (HfHubHTTPError, httpx2.HTTPError, httpx2.InvalidURL, HFValidationError, OfflineModeIsEnabled, OSError)

_TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})


def is_transient(failure: Exception) -> bool:
    """Whether asking the hub again may help: rate limits, server errors, broken or slow connections."""
    if isinstance(failure, HfHubHTTPError):
        return failure.response.status_code in _TRANSIENT_STATUS
    return isinstance(failure, httpx2.TransportError) and not isinstance(failure, httpx2.UnsupportedProtocol)


def unavailable(failure: Exception, repo: str, *, has_token: bool) -> ModelUnavailable:
    """The one clear error for `failure` while fetching `repo`. `failure` is one of TRANSLATED."""
    return ModelUnavailable(f"{repo}: {_sentence(failure, repo, has_token=has_token)}")


def _sentence(failure: Exception, repo: str, *, has_token: bool) -> str:
    if isinstance(failure, HFValidationError):
        return "this is not a valid model id: write it as ORGANISATION/NAME"
    if isinstance(failure, OfflineModeIsEnabled):
        return "the hub may not be asked because HF_HUB_OFFLINE is set: unset it, or put the model on the volume"
    if isinstance(failure, HfHubHTTPError):
        return _hub_sentence(failure, repo, has_token=has_token)
    if isinstance(failure, httpx2.TimeoutException):
        return "the hub did not answer in time: check the network of the worker, then start it again"
    if isinstance(failure, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return "the address of the hub is not valid: correct or unset HF_ENDPOINT"
    if isinstance(failure, httpx2.HTTPError):
        return "the hub cannot be reached: check the network of the worker, then start it again"
    assert isinstance(failure, OSError)
    reason, advice = reason_of(failure)
    return f"MODEL_CACHE_DIR {reason}: {advice}"


def _hub_sentence(failure: HfHubHTTPError, repo: str, *, has_token: bool) -> str:
    status = failure.response.status_code
    licence = f"set HF_TOKEN to a token that has accepted the licence of {repo}"
    if isinstance(failure, GatedRepoError):
        return f"the model is gated: {licence}"
    if isinstance(failure, RevisionNotFoundError):
        return "the hub does not have the revision that was asked for: correct or unset it"
    if isinstance(failure, EntryNotFoundError):
        return "the hub lists a file that it does not have: try again later, or pin another revision"
    if isinstance(failure, RepositoryNotFoundError) or status == 404:
        private = "" if has_token else ", or set HF_TOKEN if the model is private"
        return f"the hub has no such model ({status}): correct the model id{private}"
    if status == 401:
        return "the hub refuses HF_TOKEN (401): set it to a valid token" if has_token else f"401: {licence}"
    if status == 403:
        return f"the hub forbids the download (403): {licence} and has read permission"
    if status == 429:
        advice = "wait some minutes" if has_token else "set HF_TOKEN, or wait some minutes"
        return f"the hub limits the rate of downloads (429): {advice}, then start the worker again"
    if status >= 500:
        return f"the hub is failing ({status}): try again later"
    return f"the hub refused the download ({status}): check the model id and HF_TOKEN"
