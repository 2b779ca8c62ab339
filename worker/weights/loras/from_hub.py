"""One file of a repository on the hub: looked up, and fetched with the patience that models are fetched with."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers

from worker.base.errors import ModelUnavailable, Unsupported, WorkerError
from worker.weights.hub.listing import HubFile
from worker.weights.hub.transfer import Abort, HubPatience, PartialFile, Retries, TransferProgress, receive

_NOT_FOUND = (RepositoryNotFoundError, EntryNotFoundError, RevisionNotFoundError, HFValidationError)
_TRANSLATED = (HfHubHTTPError, httpx2.HTTPError, HFValidationError, OfflineModeIsEnabled)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class LoraHub:
    """Asks the hub at `endpoint` (the hub client's own where None), with `token` or without one."""

    def __init__(self, *, token: str | None, endpoint: str | None, retries: Retries | None = None) -> None:
        # False: a token that is stored on the machine for somebody else is not used.
        self._token: str | bool = token if token is not None else False
        self._endpoint = endpoint
        self._retries = retries

    def find(self, repo: str, file: str, *, path: str, stop: threading.Event | None) -> HubFile:
        """What the hub has under that name now, pinned to its commit.

        Raises Unsupported where it has none or shows none to this worker, ModelUnavailable where it fails, Cancelled.
        """
        patience = HubPatience(Abort(stop), self._retries)
        try:
            url = hf_hub_url(repo, file, endpoint=self._endpoint)
            while True:
                try:
                    known = get_hf_file_metadata(url, token=self._token, endpoint=self._endpoint)
                    break
                except (HfHubHTTPError, httpx2.TransportError) as failure:
                    patience.pause(failure)
        except _TRANSLATED as failure:
            raise _explained(failure, path) from failure
        if known.size is None or known.etag is None or known.commit_hash is None:
            raise ModelUnavailable("the hub describes this LoRA in a way that cannot be used", path=path)
        sha256 = known.etag if _SHA256.fullmatch(known.etag) else None
        pinned = hf_hub_url(repo, file, revision=known.commit_hash, endpoint=self._endpoint)
        return HubFile(file, pinned, known.size, sha256, None if sha256 else known.etag)

    def download(self, entry: HubFile, target: Path, *, path: str, stop: threading.Event | None) -> str:
        """Write the file to `target` and return its sha256, which is what the hub says. Raises what `find` raises."""
        try:
            with (
                TransferProgress("downloading a LoRA", entry.size) as progress,
                PartialFile(target, entry.size) as part,
            ):
                patience = HubPatience(Abort(stop), self._retries)
                receive(entry.url, build_hf_headers(token=self._token), part, patience=patience, progress=progress)
                sha256 = part.finish()
        except _TRANSLATED as failure:
            raise _explained(failure, path) from failure
        if not entry.is_content(target, sha256):
            raise ModelUnavailable("the LoRA arrived damaged from the hub: try again", path=path)
        return sha256


def _explained(failure: Exception, path: str) -> WorkerError:
    if isinstance(failure, _NOT_FOUND) and not isinstance(failure, GatedRepoError):
        message = "the hub has no such file, or it is private: write OWNER/REPO/FILE.safetensors as its page shows"
        return Unsupported(message, path=path)
    if isinstance(failure, HfHubHTTPError):
        status = failure.response.status_code
        if isinstance(failure, GatedRepoError) or status in (401, 403):
            message = "the hub gives this worker no access to that repository: its operator must set HF_TOKEN for it"
            return Unsupported(message, path=path)
        return ModelUnavailable(f"the hub is failing ({status}): try again later", path=path)
    if isinstance(failure, OfflineModeIsEnabled):
        return ModelUnavailable("this worker may not ask the hub (HF_HUB_OFFLINE is set)", path=path)
    return ModelUnavailable("the hub cannot be reached: try again later", path=path)
