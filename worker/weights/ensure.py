"""A model folder that can be loaded: found and checked, or downloaded by one worker of the volume."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from worker.base import metrics
from worker.base.errors import ModelUnavailable
from worker.base.locks import held
from worker.weights.folder import check
from worker.weights.folder import record as records
from worker.weights.folder.places import (
    RUNPOD_CACHE,
    ModelFolder,
    candidates,
    diffusers_repo,
    home,
    local_folder,
    looked_at,
)
from worker.weights.folder.record import Dtype
from worker.weights.hub.download import download, drop_unfinished
from worker.weights.hub.failures import TRANSLATED, unavailable
from worker.weights.hub.listing import list_files
from worker.weights.hub.transfer import Abort

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, where, and what the hub is to be told. The token is never shown."""

    model_id: str
    cache_dir: Path
    runpod_cache: Path
    prepared: Dtype | None
    revision: str | None
    token: str | None = field(repr=False)
    endpoint: str | None

    @property
    def repo(self) -> str:
        return diffusers_repo(self.model_id)

    def candidates(self) -> list[tuple[ModelFolder, bool]]:
        return list(
            candidates(
                self.model_id,
                cache_dir=self.cache_dir,
                runpod_cache=self.runpod_cache,
                prepared=self.prepared,
                revision=self.revision,
            )
        )

    def intact(self) -> ModelFolder | None:
        """The first complete folder that passes the cheap check."""
        for folder, complete in self.candidates():
            if not complete:
                continue
            problems = check.check(folder.path)
            if not problems:
                _note(folder)
                return folder
            logger.warning("%s in %s is damaged: %s", folder.repo, folder.path, "; ".join(problems))
        return None


def ensure(
    model_id: str,
    *,
    cache_dir: Path,
    token: str | None,
    revision: str | None = None,
    prepared: Dtype | None = "bf16",
    runpod_cache: Path = RUNPOD_CACHE,
    on_bytes: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
    endpoint: str | None = None,
) -> ModelFolder:
    """A folder that holds the model and has passed the cheap check; downloads and repairs what is needed for that.

    `model_id` is a repository or the path of a folder; `revision` a commit, branch or tag, None for what is there
    already or else the branch main. `endpoint`: the hub, None for the hub client's own (HF_ENDPOINT).
    `on_bytes(done, total)` is called from other threads while a download runs.

    Raises ModelUnavailable (the message names what to do) and, when `stop` is set, Cancelled. Blocks, for as long as
    another worker of the volume downloads the same model.
    """
    search = _Search(model_id, cache_dir, runpod_cache, prepared, revision, token, endpoint)
    abort = Abort(stop)
    try:
        if (ready := search.intact()) is not None:
            metrics.cache("hub", hit=True)
            return ready
        if local_folder(model_id) is not None:
            raise _local_failure(search)
        with held(lock_path(cache_dir, search.repo), doing=f"downloading {search.repo}", stopped=abort.is_set):
            if (ready := search.intact()) is not None:
                return ready
            metrics.cache("hub", hit=False)
            _set_prepared_aside(search)
            return _fetch(search, on_bytes, abort)
    except TRANSLATED as failure:
        raise _explained(unavailable(failure, search.repo, has_token=token is not None), search) from failure
    except ModelUnavailable as failure:
        raise _explained(failure, search) from failure


def lock_path(cache_dir: Path, repo: str) -> Path:
    """The lock of a repository in a cache: who holds it may change its folders."""
    return cache_dir / ".locks" / f"{home(cache_dir, repo).name}.lock"


def _fetch(search: _Search, on_bytes: Callable[[int, int], None] | None, abort: Abort) -> ModelFolder:
    """Download, into the folder that is there already if there is one that may be mended."""
    begun = next((found for found, _ in search.candidates() if found.source == "cache"), None)
    pinned = begun.revision if begun is not None and begun.revision is not None else search.revision
    listing = list_files(search.repo, revision=pinned, token=search.token, abort=abort, endpoint=search.endpoint)
    if begun is not None:
        target = begun.path
        known = records.read(target)
        listing = replace(listing, requested=known.requested if known is not None else search.revision)
    else:
        target = home(search.cache_dir, search.repo) / listing.revision
        listing = replace(listing, requested=search.revision)
    download(
        target,
        listing,
        cache_dir=search.cache_dir,
        runpod_cache=search.runpod_cache,
        token=search.token,
        on_bytes=on_bytes,
        abort=abort,
    )
    if problems := check.check(target):
        raise ModelUnavailable(f"{search.repo} is not usable as the hub has it: {'; '.join(problems)}")
    if target.parent == home(search.cache_dir, search.repo):
        drop_unfinished(target.parent, keep=target)
    return ModelFolder(target, search.repo, listing.revision, "hub")


def _set_prepared_aside(search: _Search) -> None:
    """Put damaged prepared weights out of the way: the hub does not have them, the originals serve instead."""
    for folder, _ in search.candidates():
        if folder.source == "prepared":
            aside = folder.path.with_name(f"{folder.path.name}.corrupt")
            shutil.rmtree(aside, ignore_errors=True)
            folder.path.rename(aside)
            logger.warning(
                "the %s weights of %s are set aside as %s; prepare them again", folder.dtype, folder.repo, aside.name
            )


def _note(folder: ModelFolder) -> None:
    """Record a folder that somebody else put there, where it can be written: later starts then check its content."""
    if records.read(folder.path) is not None:
        return
    try:
        record = check.make_record(folder.path, repo=folder.repo, revision=folder.revision)
        records.write(folder.path, record)
    except OSError as failure:
        logger.info(
            "no record is kept of %s (%s): later starts check its structure only", folder.path, failure.strerror
        )


def _local_failure(search: _Search) -> ModelUnavailable:
    folder = local_folder(search.model_id)
    assert folder is not None
    if not folder.is_dir():
        return ModelUnavailable("the model id names a folder that does not exist: correct it")
    if not (folder / check.MODEL_INDEX).is_file():
        return ModelUnavailable(
            f"the model id names a folder that is not in Diffusers' format (it has no {check.MODEL_INDEX})"
        )
    return ModelUnavailable(
        f"the model folder {folder.name} is damaged: {'; '.join(check.check(folder))}: put these files there again"
    )


def _explained(failure: ModelUnavailable, search: _Search) -> ModelUnavailable:
    """The same error with what was looked at and what lies there; the paths go to the log alone."""
    if local_folder(search.model_id) is not None:
        logger.error("%s (%s)", failure.message, local_folder(search.model_id))
        return failure
    public, private = looked_at(search.model_id, cache_dir=search.cache_dir, runpod_cache=search.runpod_cache)
    logger.error("%s. %s", failure.message, private)
    return ModelUnavailable(f"{failure.message}. {public}")
