"""The spool: finished videos that the storage would not take, kept on STATE_DIR until it does.

A video is kept with its poster and the result that it will have, so that nothing of it is made again: a job that is
delivered again stores it from here, and so does the next job or any worker that shares the folder. Such a late upload
records the result in the journal and sends no webhook: the receiver was told `failed`, retryable, as the final event of
that delivery, and the job that it sends again is answered `completed` from the journal.

No more than `BOUNDS` is kept, the oldest goes first, and nothing longer than 7 days. Two workers never upload one video
at the same time: who does holds a lock on its entry (`worker.delivery.spool_entry` writes and reads them). An
unwritable or full volume costs this protection and nothing else."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from worker.base import files as statefiles
from worker.base import locks, timing
from worker.base.errors import UploadFailed
from worker.base.log import job_scope
from worker.delivery import spool_entry as kept_files
from worker.delivery.spool_entry import ENTRY, Damaged, Kept
from worker.delivery.storage.base import Delivery
from worker.media import VideoFile

if TYPE_CHECKING:
    from worker.delivery.journal import Entry
    from worker.delivery.storage import Storage

_log = logging.getLogger(__name__)

_FOLDER = "spool"
_LOCK_WAIT_S = 5.0
_POLL_S = 0.2
# What has no JSON after this long belongs to a worker that died.
_HALF_WRITTEN_KEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept, over all workers of a folder."""

    size_bytes: int = 5 * 1024**3
    videos: int = 200


BOUNDS = Bounds()


class Results(Protocol):
    """The part of the journal that a late upload needs."""

    def entry(self, job_id: str) -> Entry | None: ...

    def record_result(
        self, job_id: str, index: int, result: Mapping[str, Any], *, replacing: Mapping[str, Any] | None = None
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Found:
    """A kept video and the place of its entry."""

    place: Path
    kept: Kept


class Spool:
    """The kept videos of every job. Thread-safe; blocks, so call it from a thread."""

    def __init__(
        self, state: statefiles.StateFolder, *, bounds: Bounds = BOUNDS, now: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._bounds = bounds
        self._now = now

    def keep(
        self, video: VideoFile, *, job_id: str, payload_digest: str, index: int, key: str, result: Mapping[str, Any]
    ) -> bool:
        """Keep a copy of `video` for a later upload to `key`; `result` is its result, whose URLs do not matter.

        What is kept of a video already stays. True where it is kept now; raises nothing.
        """
        if video.size_bytes > self._bounds.size_bytes:
            _log.warning("video %d is too large to be kept for a later upload: %d bytes", index, video.size_bytes)
            return False
        kept = Kept(
            job_id=job_id,
            payload_digest=payload_digest,
            index=index,
            key=key,
            result=with_links(result, Delivery("", None)),
            width=video.width,
            height=video.height,
            num_frames=video.num_frames,
            fps=video.fps,
            size_bytes=video.size_bytes,
            sha256=video.sha256,
        )
        try:
            self._put(kept, video)
        except Damaged:
            _log.warning("video %d was damaged on the worker's disk and is not kept for a later upload", index)
            return False
        except (OSError, ValueError) as failure:
            self._state.cannot(failure)
            return False
        _log.info("video %d is kept for a later upload, %d bytes", index, video.size_bytes)
        return True

    def find(self, *, job_id: str, payload_digest: str, index: int, key: str) -> Found | None:
        """The kept video of just this payload and key, every byte checked, or None. Raises nothing."""
        try:
            for place in kept_files.places_of(self._folder(), job_id, index):
                with suppress(FileNotFoundError):
                    kept = kept_files.read(place)
                    if kept is None or (kept.payload_digest, kept.key) != (payload_digest, key) or self._expired(place):
                        continue
                    if kept_files.file_of(place, kept) is not None:
                        return Found(place, kept)
        except OSError as failure:
            self._state.cannot(failure)
        return None

    def upload(
        self, found: Found, storage: Storage, journal: Results, *, stop: threading.Event, wait_s: float = 120.0
    ) -> dict[str, Any]:
        """Store a video that `find` found, record its result, forget the copy; answers the result as delivered.

        Where another worker is storing it, waits for that one: at most `wait_s`, and until `stop`. Raises UploadFailed
        with the copy kept.
        """
        deadline = time.monotonic() + wait_s
        result = None
        while True:
            try:
                result = self._forward(found.place, storage, journal)
            except BlockingIOError:
                if time.monotonic() < deadline and not stop.wait(_POLL_S):
                    continue
                raise UploadFailed("another worker is storing this video: send the job again") from None
            except FileNotFoundError:
                pass  # another worker has stored it
            except OSError as failure:
                self._state.cannot(failure)
            break
        if result is None:
            entry = journal.entry(found.kept.job_id)
            result = entry.finished.get(found.kept.index) if entry is not None else None
        if result is None:
            raise UploadFailed("the video that was kept for a later upload is gone: send the job again")
        return dict(result)

    def drain(
        self, storage: Storage, journal: Results, *, budget_s: float = 60.0, stop: threading.Event | None = None
    ) -> int:
        """Sweep, then store what is kept, in random order, up to the first failure; answers how many were stored.

        No upload begins after `budget_s` or `stop`. Raises nothing.
        """
        deadline = time.monotonic() + budget_s
        stored = 0
        self.sweep()
        try:
            places = sorted(self._folder().glob(f"*{ENTRY}"))
            random.shuffle(places)  # several workers that wake together should not queue for the same videos
            for place in places:
                if time.monotonic() >= deadline or (stop is not None and stop.is_set()):
                    break
                with suppress(BlockingIOError, FileNotFoundError):
                    kept = kept_files.read(place)
                    # A job that the journal does not know could not be answered: its video waits for the job.
                    if kept is not None and journal.entry(kept.job_id) is not None:
                        with job_scope(kept.job_id):
                            stored += self._forward(place, storage, journal) is not None
        except UploadFailed:
            _log.info("the storage does not take kept videos yet")
        except OSError as failure:
            self._state.cannot(failure)
        return stored

    def held(self) -> tuple[int, int]:
        """How many videos are kept, by every worker, and the bytes of all files there. Raises nothing."""
        try:
            files = kept_files.sizes(self._folder())
        except OSError as failure:
            self._state.cannot(failure)
            return 0, 0
        return sum(path.suffix == ENTRY for path in files), sum(status.st_size for status in files.values())

    def sweep(self) -> int:
        """Remove entries older than 7 days and what was never finished; answers how many files went. Raises nothing."""
        removed = 0
        try:
            files = kept_files.sizes(self._folder())
            for path, status in files.items():
                if path.suffix == ENTRY:
                    with suppress(FileNotFoundError):
                        if self._expired(path) and self._evict(path):
                            removed += 1
                elif path.with_suffix(ENTRY) not in files and self._now() - status.st_mtime > _HALF_WRITTEN_KEEP_S:
                    path.unlink(missing_ok=True)
                    removed += 1
        except OSError as failure:
            self._state.cannot(failure)
        return removed

    def _put(self, kept: Kept, video: VideoFile) -> None:
        place = kept_files.new_place(self._folder(), kept.job_id, kept.index)
        published = False
        try:
            kept_files.copy_files(video, place)
            with locks.locked(self._state.folder("locks") / "spool.lock", wait_s=_LOCK_WAIT_S):
                if not self._is_kept(kept):
                    self._make_room()
                    kept_files.publish(place, kept)
                    published = True
        finally:
            if not published:
                kept_files.remove(place)

    def _is_kept(self, kept: Kept) -> bool:
        """Whether just this video is kept already; entries of its job's id that no longer serve go."""
        for place in kept_files.places_of(self._folder(), kept.job_id, kept.index):
            with suppress(FileNotFoundError):
                known = kept_files.read(place)
                if known is None:
                    continue
                if (known.payload_digest, known.key) == (kept.payload_digest, kept.key):
                    return True
                self._evict(place)
        return False

    def _make_room(self) -> None:
        """Let the oldest entries go until all files together, and one entry more than there are, fit the bounds."""
        files = kept_files.sizes(self._folder())
        entries = sorted((path for path in files if path.suffix == ENTRY), key=lambda path: files[path].st_mtime_ns)
        size_bytes, videos = sum(status.st_size for status in files.values()), len(entries) + 1
        for place in entries:
            if size_bytes <= self._bounds.size_bytes and videos <= self._bounds.videos:
                return
            if self._evict(place):
                _log.warning("the kept video %s goes: newer ones need its room", place.stem)
                size_bytes -= sum(files[path].st_size for path in kept_files.files_of(place) if path in files)
                videos -= 1

    def _evict(self, place: Path) -> bool:
        """Remove an entry; False where a worker is storing it."""
        try:
            with locks.claimed(place):
                kept_files.remove(place)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        return True

    def _forward(self, place: Path, storage: Storage, journal: Results) -> dict[str, Any] | None:
        """Store one entry, record it and remove it; answers its result, None where the entry was of no use.

        Raises UploadFailed with the entry kept, BlockingIOError where another worker has it, other OSErrors.
        """
        with locks.claimed(place) as content:
            kept = kept_files.parse(place, content)
            if kept is None:
                return None
            entry = journal.entry(kept.job_id)
            if self._expired(place) or (entry is not None and entry.payload_digest != kept.payload_digest):
                kept_files.remove(place)
                return None
            known = entry.finished.get(kept.index) if entry is not None else None
            if known is not None and storage.holds(kept.key, sha256=known["sha256"]):
                kept_files.remove(place)
                return refreshed(known, kept.key, storage)
            video = kept_files.file_of(place, kept)
            if video is None:
                return None
            result = _store(kept, video, storage)
            journal.record_result(kept.job_id, kept.index, result, replacing=known)
            entry = journal.entry(kept.job_id)
            if entry is not None and kept.index in entry.finished:
                kept_files.remove(place)
            return result

    def _folder(self) -> Path:
        return self._state.folder(_FOLDER)

    def _expired(self, place: Path) -> bool:
        return self._now() - place.stat().st_mtime > statefiles.KEEP_S


def with_links(result: Mapping[str, Any], delivery: Delivery) -> dict[str, Any]:
    """`result` with the URLs of `delivery`."""
    return {**result, "video_url": delivery.video_url, "thumbnail_url": delivery.thumbnail_url}


def refreshed(result: Mapping[str, Any], key: str, storage: Storage) -> dict[str, Any]:
    """The result of a video that lies in the storage, with URLs made anew: presigned ones expire before it does."""
    return with_links(result, storage.links(key, poster=result["thumbnail_url"] is not None))


def _store(kept: Kept, video: VideoFile, storage: Storage) -> dict[str, Any]:
    began = time.perf_counter()
    with timing.timed(kept.index, "upload", size_bytes=video.size_bytes):
        delivery = storage.store(video, kept.key)
    seconds = time.perf_counter() - began
    timings = dict(kept.result["timings"])
    for stage in ("upload", "total"):  # the attempts that failed stay counted, the time in the spool does not count
        timings[stage] = round(timings.get(stage, 0.0) + seconds, 3)
    _log.info("a kept video is stored: %s", kept.key)
    return with_links({**kept.result, "timings": timings}, delivery)
