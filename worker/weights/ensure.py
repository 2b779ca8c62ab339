"""A model folder that can be loaded: found and checked, or downloaded by one worker of the volume."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from worker.base import metrics
from worker.base.errors import ModelUnavailable
from worker.base.locks import held
from worker.weights.folder import check
from worker.weights.folder import record as records
from worker.weights.folder.places import ModelCache, ModelFolder, diffusers_repo, local_folder
from worker.weights.folder.record import Dtype
from worker.weights.hub.download import download, drop_unfinished
from worker.weights.hub.failures import TRANSLATED, unavailable
from worker.weights.hub.listing import list_files
from worker.weights.hub.transfer import Abort, HubPatience, Retries

logger = logging.getLogger(__name__)


def ensure(
    cache: ModelCache,
    model_id: str,
    *,
    prepared: Dtype | None = "bf16",
    revision: str | None = None,
    on_bytes: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
    retries: Retries | None = None,
) -> ModelFolder:
    """A folder that holds the model and has passed the cheap check; downloads and repairs what is needed for that.

    `model_id`: a repository, or the path of a folder.
    `prepared`: the precision that is preferred, None for the originals.
    `revision`: a commit, branch or tag; None for what is stored already, or else the branch main.
    `on_bytes(done, total)`: called from other threads while a download runs.

    Raises ModelUnavailable (the message names what to do) and, when `stop` is set, Cancelled. Blocks, for as long as
    another worker of the volume downloads the same model.
    """
    repo = diffusers_repo(model_id)
    abort = Abort(stop)
    try:
        if (ready := _intact(cache.candidates(model_id, prepared=prepared, revision=revision))) is not None:
            metrics.cache("hub", hit=True)
            return ready
        if (local := local_folder(model_id)) is not None:
            raise _local_failure(local)
        with held(cache.lock_path(repo), doing=f"downloading {repo}", stopped=abort.is_set):
            candidates = list(cache.candidates(model_id, prepared=prepared, revision=revision))
            if (ready := _intact(candidates)) is not None:
                return ready
            metrics.cache("hub", hit=False)
            _set_prepared_aside(candidates)
            begun = next((found for found in candidates if found.source == "cache"), None)
            return _fetch(cache, repo, begun, revision, HubPatience(abort, retries), on_bytes)
    except TRANSLATED as failure:
        raise _explained(unavailable(failure, repo, has_token=cache.token is not None), cache, model_id) from failure
    except ModelUnavailable as failure:
        raise _explained(failure, cache, model_id) from failure


def _intact(candidates: Iterable[ModelFolder]) -> ModelFolder | None:
    """The first complete folder that passes the cheap check."""
    for folder in candidates:
        if not folder.complete:
            continue
        problems = check.check(folder.path)
        if not problems:
            _note(folder)
            return folder
        logger.warning("%s in %s is damaged: %s", folder.repo, folder.path, "; ".join(problems))
    return None


def _fetch(
    cache: ModelCache,
    repo: str,
    begun: ModelFolder | None,
    revision: str | None,
    patience: HubPatience,
    on_bytes: Callable[[int, int], None] | None,
) -> ModelFolder:
    """Download, into `begun`, the folder that may be repaired, if there is one."""
    if begun is None:
        listing = list_files(cache, repo, revision=revision, patience=patience)
        target, requested = cache.home(repo) / listing.revision, revision
    else:
        known = records.read(begun.path)
        pinned = begun.revision if begun.revision is not None else revision
        listing = list_files(cache, repo, revision=pinned, patience=patience)
        target, requested = begun.path, known.requested if known is not None else revision
    download(cache, target, replace(listing, requested=requested), patience=patience, on_bytes=on_bytes)
    if problems := check.check(target):
        raise ModelUnavailable(f"{repo} is not usable as the hub has it: {'; '.join(problems)}")
    if target.parent == cache.home(repo):
        drop_unfinished(target.parent, keep=target)
    return ModelFolder(target, repo, listing.revision, "hub")


def _set_prepared_aside(candidates: Iterable[ModelFolder]) -> None:
    """Move damaged prepared weights out of the way: the hub does not have them, the originals serve instead."""
    for folder in candidates:
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


def _local_failure(folder: Path) -> ModelUnavailable:
    if not folder.is_dir():
        return ModelUnavailable("the model id names a folder that does not exist: correct it")
    if not (folder / check.MODEL_INDEX).is_file():
        return ModelUnavailable(
            f"the model id names a folder that is not in Diffusers' format (it has no {check.MODEL_INDEX})"
        )
    return ModelUnavailable(
        f"the model folder {folder.name} is damaged: {'; '.join(check.check(folder))}: put these files there again"
    )


def _explained(failure: ModelUnavailable, cache: ModelCache, model_id: str) -> ModelUnavailable:
    """The same error with what was searched and found; the paths go to the log alone."""
    if (local := local_folder(model_id)) is not None:
        logger.error("%s (%s)", failure.message, local)
        return failure
    public, private = cache.looked_at(model_id)
    logger.error("%s. %s", failure.message, private)
    return ModelUnavailable(f"{failure.message}. {public}")
