"""What the hub has: the files of a repository at one commit, with sizes and hashes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError

from worker.base.errors import ModelUnavailable
from worker.weights.folder.check import MODEL_INDEX, wanted
from worker.weights.folder.places import ModelCache
from worker.weights.hub.transfer import HubPatience


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file. `sha256`: of large files (LFS); `git_oid`: of the others, the SHA-1 that git gives to their content."""

    path: str
    url: str
    size: int
    sha256: str | None
    git_oid: str | None

    @property
    def partial_name(self) -> str:
        """The name of the file while it is incomplete: another content never continues it."""
        return f"{PurePosixPath(self.path).name}.{(self.sha256 or self.git_oid or '')[:16]}.incomplete"

    def is_content(self, path: Path, sha256: str) -> bool:
        """Whether a file of that sha256 is this one, by the hash that the hub knows."""
        if self.sha256 is not None:
            return sha256 == self.sha256
        content = path.read_bytes()
        blob = b"blob %d\0" % len(content) + content
        return hashlib.sha1(blob, usedforsecurity=False).hexdigest() == self.git_oid


@dataclass(frozen=True, slots=True)
class Listing:
    """The files that a pipeline needs, of one commit. `requested`: the branch or tag that was asked for, or None."""

    repo: str
    revision: str
    requested: str | None
    files: tuple[HubFile, ...]

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.files)


def list_files(cache: ModelCache, repo: str, *, revision: str | None, patience: HubPatience) -> Listing:
    """Ask the hub for the commit behind `revision` (the branch main where None) and its files.

    Raises ModelUnavailable where the repository is not in Diffusers' format, else what the hub client raises.
    """
    patience = patience.fresh()
    while True:
        try:
            info = HfApi(cache.endpoint, token=cache.token).model_info(
                repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            )
            break
        except (HfHubHTTPError, httpx2.TransportError) as failure:
            patience.pause(failure)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if MODEL_INDEX not in siblings:
        raise ModelUnavailable(
            f"{repo} is not in Diffusers' format (it has no {MODEL_INDEX}): "
            "set the model id to its twin, whose name ends in -Diffusers"
        )
    if info.sha is None:
        raise ModelUnavailable(f"{repo}: the hub names no commit for this model: try again later")
    files = []
    for path in wanted(siblings):
        sibling = siblings[path]
        size = sibling.lfs.size if sibling.lfs is not None else sibling.size
        if size is None or ".." in PurePosixPath(path).parts:
            raise ModelUnavailable(f"{repo}: the hub describes {PurePosixPath(path).name} in a way that cannot be used")
        url = hf_hub_url(repo, path, revision=info.sha, endpoint=cache.endpoint)
        sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
        files.append(HubFile(path, url, size, sha256, None if sha256 else sibling.blob_id))
    requested = revision if revision != info.sha else None
    return Listing(repo, info.sha, requested, tuple(files))
