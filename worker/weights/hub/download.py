"""Bring a model folder to what the hub has: keep what is intact, link what is stored elsewhere, fetch the rest.

The hub client's own `snapshot_download` (2.4) writes to a file of a random name and deletes it on failure, so that a
killed download of a 5 GB shard begins again; it also accepts damaged bytes of the right length. Here a partial file
is named by the hash that it will have, is continued by whoever holds the lock next, and gets its final name only when
its hash is that of the hub.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path

from huggingface_hub.utils._headers import build_hf_headers

from worker.base.errors import Cancelled, ModelUnavailable
from worker.base.files import TEMPORARY_KEEP_S, is_temporary, sha256_of
from worker.base.locks import held
from worker.weights.folder import record as records
from worker.weights.folder.check import damage_of, describe_file
from worker.weights.folder.links import find_copy, link
from worker.weights.folder.places import ModelCache
from worker.weights.folder.record import FileRecord, Record
from worker.weights.hub.listing import HubFile, Listing
from worker.weights.hub.transfer import HubPatience, PartialFile, TransferProgress, receive

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 8


class Download:
    """One download into one folder; the caller holds the lock of the repository."""

    def __init__(
        self,
        cache: ModelCache,
        folder: Path,
        listing: Listing,
        *,
        patience: HubPatience,
        progress: TransferProgress,
    ) -> None:
        self._cache = cache
        self._folder = folder
        self._listing = listing
        self._headers = build_hf_headers(token=cache.token)
        self._patience = patience
        self._abort = patience.abort
        self._progress = progress
        self._record_lock = threading.Lock()
        known = records.read(folder)
        self._record = Record(
            repo=listing.repo,
            revision=listing.revision,
            requested=listing.requested,
            complete=False,
            files=known.files if known is not None else {},
        )

    def run(self) -> None:
        """Raises ModelUnavailable, Cancelled, or what the hub client, httpx2 and the volume raise."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        records.write(self._folder, self._record)
        # Large files first: no thread is left with a whole shard at the end.
        files = sorted(self._listing.files, key=lambda file: -file.size)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            self._wait([pool.submit(copy_context().run, self._settle, file) for file in files])
        kept = {file.path: self._record.files[file.path] for file in files}
        records.write(self._folder, replace(self._record, complete=True, files=kept))

    def _wait(self, futures: list[Future[None]]) -> None:
        failures: list[BaseException] = []
        for future in as_completed(futures):
            if (failure := future.exception()) is not None:
                self._abort.fail()
                failures.append(failure)
        # The other files end as cancelled once one has failed: that one is what happened.
        for failure in sorted(failures, key=lambda failure: isinstance(failure, Cancelled)):
            raise failure

    def _settle(self, file: HubFile) -> None:
        self._abort.check()
        target = self._folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (entry := self._intact(file, target)) is not None:
            self._progress.add(file.size)
            self._note(file, entry)
        elif file.sha256 is None:
            self._note(file, self._fetch(file, target))
        else:
            # Another model's download may be fetching the same content, such as the shared text encoder. It finds this
            # file by its record, which is written before the lock is released.
            lock = self._cache.folder / ".locks" / f"{file.sha256}.lock"
            with held(lock, doing=f"downloading {file.path}", stopped=self._abort.is_set):
                self._note(file, self._borrow(file, target) or self._fetch(file, target))

    def _note(self, file: HubFile, entry: FileRecord) -> None:
        with self._record_lock:
            self._record = self._record.with_file(file.path, entry)
            records.write(self._folder, self._record)

    def _intact(self, file: HubFile, target: Path) -> FileRecord | None:
        """The record of a file that is as it should be. One that is not is set aside, and named in the log."""
        if not target.is_file():
            target.unlink(missing_ok=True)  # a link whose blob is gone
            return None
        known = self._record.files.get(file.path)
        reason = damage_of(target, known) if known is not None else None
        if reason is None and target.stat().st_size == file.size:
            if known is not None and known.sha256 is not None and known.sha256 == file.sha256:
                return known
            sha256 = sha256_of(target)
            if file.is_content(target, sha256):
                return describe_file(target, sha256=sha256)
        self._set_aside(target, file.path, reason or "it is not what the hub has")
        return None

    def _set_aside(self, target: Path, path: str, reason: str) -> None:
        logger.warning(
            "%s of %s is damaged: %s. It is set aside as %s.corrupt and fetched again",
            path,
            self._listing.repo,
            reason,
            target.name,
        )
        blob = target.resolve()
        if target.is_symlink():
            target.unlink()
            if not blob.is_relative_to(self._cache.folder.resolve()):
                return
        blob.replace(blob.with_name(f"{blob.name}.corrupt"))

    def _borrow(self, file: HubFile, target: Path) -> FileRecord | None:
        """Link the same content from elsewhere on the volume, such as the text encoder of the other model."""
        assert file.sha256 is not None
        aside = target.with_name(f"{target.name}.corrupt")
        found = find_copy(self._cache, file.sha256, file.size, other_than=aside)
        if found is None:
            return None
        path, entry = found
        link(path, target)
        logger.info("%s of %s was on the volume already; it is shared", file.path, self._listing.repo)
        self._progress.add(file.size)
        target.with_name(file.partial_name).unlink(missing_ok=True)
        return entry

    def _fetch(self, file: HubFile, target: Path) -> FileRecord:
        partial_path = target.with_name(file.partial_name)
        for _ in range(2):
            with PartialFile(partial_path, file.size) as partial:
                receive(file.url, self._headers, partial, patience=self._patience, progress=self._progress)
                sha256 = partial.finish()
            if file.is_content(partial_path, sha256):
                entry = describe_file(partial_path, sha256=sha256)
                partial_path.replace(target)
                return entry
            logger.warning("%s of %s arrived damaged; it is fetched again", file.path, self._listing.repo)
            partial_path.unlink()
            self._progress.add(-file.size)
        raise ModelUnavailable(
            f"{self._listing.repo}: {file.path} arrived damaged twice (its sha256 is not that of the hub): "
            "check the network between the worker and the hub, then start the worker again"
        )

    def _sweep(self) -> None:
        """Remove partial files that nothing will continue. The lock's holder alone may do so."""
        ours = {(self._folder / file.path).with_name(file.partial_name) for file in self._listing.files}
        stale = [path for path in self._folder.rglob("*.incomplete") if path not in ours]
        # Those of the hub client, and half-written records, belong to no lock of ours: only old ones are stale.
        blobs = self._cache.folder / ("models--" + self._listing.repo.replace("/", "--")) / "blobs"
        others = [*blobs.glob("*.incomplete"), *filter(lambda path: is_temporary(path.name), self._folder.rglob(".*"))]
        oldest_use = time.time() - TEMPORARY_KEEP_S
        stale += [path for path in others if path.stat().st_mtime < oldest_use]
        for path in stale:
            logger.info("the stale partial file %s is deleted", path.name)
            path.unlink(missing_ok=True)


def download(
    cache: ModelCache,
    folder: Path,
    listing: Listing,
    *,
    patience: HubPatience,
    on_bytes: Callable[[int, int], None] | None,
) -> None:
    """Bring `folder` to the listing. The caller holds the lock of the repository.

    Raises ModelUnavailable, Cancelled, or what the hub client, httpx2 and the volume raise.
    """
    logger.info("downloading %s at %s: %.2f GB", listing.repo, listing.revision, listing.total_bytes / 1e9)
    started = time.monotonic()
    with TransferProgress(f"downloading {listing.repo}", listing.total_bytes, on_bytes) as progress:
        Download(cache, folder, listing, patience=patience, progress=progress).run()
    logger.info("%s is complete and verified, after %.0f s", listing.repo, time.monotonic() - started)


def drop_unfinished(home: Path, *, keep: Path) -> None:
    """Delete downloads of other revisions that were never finished, beside the one that is kept."""
    for path in home.iterdir():
        record = records.read(path) if path.is_dir() and path != keep else None
        if record is not None and not record.complete:
            logger.info("the unfinished download of revision %s is deleted", record.revision)
            shutil.rmtree(path)
