"""The spool: finished videos that the storage would not take, kept on STATE_DIR until it does.

A video and the files beside it are kept as they are, beside the journal, whose entry has the result of the video under
`unstored`; so nothing of it is made again. A job that is delivered again stores it from here, and so does the next job
or any worker that shares the folder. Such a late upload records the result and sends no webhook: the receiver got
`failed`, retryable, as the final event of that delivery, and the job that it sends again gets `completed` from the
journal. A video for an address of the caller's waits for that job: the address is a secret, and kept nowhere.

No more than `BOUNDS` is kept, the oldest is removed first, and nothing for longer than its job's entry, 7 days. Two
workers never upload one video at the same time: the one that does holds a lock on its file. An unwritable or full
volume costs this protection and nothing else.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.base import files, locks, timing
from worker.base.errors import Cancelled, UploadFailed
from worker.base.log import job_scope
from worker.base.stop import Flag
from worker.delivery import spool_before, spool_files
from worker.delivery.journal import Entry, Journal, stem_of
from worker.delivery.storage.base import (
    FRAMES_SUFFIX,
    POSTER_SUFFIX,
    refreshed,
    suffix_of,
    video_key,
    with_links,
)
from worker.media import VideoFile

if TYPE_CHECKING:
    from worker.delivery.storage import Storage

logger = logging.getLogger(__name__)

_FOLDER = "spool"
_LOCK_WAIT_S = 5.0
_POLL_S = 0.2
# A file that is older and of no entry was left by a worker that died, or its job has expired.
_UNKNOWN_KEEP_S = 3600.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept, over all workers of a folder."""

    size_bytes: int = 5 * 1024**3
    videos: int = 200


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Found:
    """A kept video, its file, and its result but for the URLs."""

    job_id: str
    index: int
    video: VideoFile
    result: Mapping[str, Any] = field(repr=False)


class Spool:
    """The kept videos of every job in `journal`. Thread-safe; blocks, so call it from a thread. Usage:

    spool.keep(video, entry, index, result)     # after an upload that failed
    found = spool.find(job_id, index)           # when the job comes again
    result = spool.upload(found, storage, stop=stop)
    spool.drain(storage)                        # beside any job
    """

    def __init__(
        self,
        state: files.StateFolder,
        journal: Journal,
        *,
        bounds: Bounds = BOUNDS,
        now: Callable[[], float] | None = None,
    ) -> None:
        self._state = state
        self._journal = journal
        self._bounds = bounds
        self._now = state.now if now is None else now
        self._draining = threading.Lock()

    def keep(self, video: VideoFile, entry: Entry, index: int, result: Mapping[str, Any]) -> bool:
        """Keep a copy of `video`, which is number `index` of the job of `entry`, for a later upload; whether it is new.

        `result` is its result without URLs; with the video's own, no `drain` stores it, only `upload`. What is kept of
        a video already stays. Raises nothing.
        """
        if video.size_bytes > self._bounds.size_bytes:
            logger.warning("video %d is too large to be kept for a later upload: %d bytes", index, video.size_bytes)
            return False
        try:
            kept = self._put(video, entry, index, result)
        except (OSError, ValueError) as failure:
            self._state.cannot(failure)
            return False
        if kept:
            logger.info("video %d is kept for a later upload, %d bytes", index, video.size_bytes)
        return kept

    def find(self, job_id: str, index: int) -> Found | None:
        """The kept video of a job in the journal, every byte checked, or None. Raises nothing."""
        try:
            self._take_over()
            entry = self._journal.named(stem_of(job_id))
            result = None if entry is None else entry.unstored.get(index)
            video = None if result is None else spool_files.whole(self._place(job_id, index, suffix_of(result)), result)
        except OSError as failure:
            self._state.cannot(failure)
            return None
        return None if result is None or video is None else Found(job_id, index, video, result)

    def upload(self, found: Found, storage: Storage, *, stop: Flag, wait_s: float = 120.0) -> dict[str, Any]:
        """Store a video that `find` found, record its result, remove the copy; returns the result as delivered.

        Where another worker is storing it, waits for that one: at most `wait_s`, and until `stop`. Raises UploadFailed,
        or Cancelled on a stop, with the copy kept.
        """
        deadline = time.monotonic() + wait_s
        result = None
        while True:
            try:
                result = self._forward(found.video.path, storage, stop)
            except BlockingIOError:
                if time.monotonic() < deadline and not stop.is_set():
                    time.sleep(_POLL_S)
                    continue
                raise UploadFailed("another worker is storing this video: send the job again") from None
            except FileNotFoundError:
                pass  # another worker has stored it
            except OSError as failure:
                self._state.cannot(failure)
            break
        if result is None:
            entry = self._journal.entry(found.job_id)
            result = entry.finished.get(found.index) if entry is not None else None
        if result is None:
            raise UploadFailed("the video that was kept for a later upload is gone: send the job again")
        return dict(result)

    def drain(self, storage: Storage, *, budget_s: float = 60.0, stop: Flag | None = None) -> None:
        """Remove what is of no use any more, then store what is kept, in random order, up to the first failure.

        No upload begins after `budget_s`; `stop` ends the one under way. Does nothing beside a drain of another thread.
        Raises nothing.
        """
        if not self._draining.acquire(blocking=False):
            return
        try:
            self._drain(storage, time.monotonic() + budget_s, stop)
        finally:
            self._draining.release()

    def _drain(self, storage: Storage, deadline: float, stop: Flag | None) -> None:
        try:
            self._take_over()
            self._sweep()
            places = sorted(spool_files.videos(spool_files.sizes(self._folder())))
            random.shuffle(places)  # several workers that wake together should not queue for the same videos
            for place in places:
                if time.monotonic() >= deadline or (stop is not None and stop.is_set()):
                    break
                with suppress(BlockingIOError, FileNotFoundError):
                    self._forward(place, storage, stop, drained=True)
        except (UploadFailed, Cancelled):
            logger.info("the storage does not take kept videos yet")
        except OSError as failure:
            self._state.cannot(failure)

    def held(self) -> tuple[int, int]:
        """How many videos are kept, by every worker, and the bytes of all files there. Raises nothing."""
        try:
            sizes = spool_files.sizes(self._folder())
        except OSError as failure:
            self._state.cannot(failure)
            return 0, 0
        return len(spool_files.videos(sizes)), sum(status.st_size for status in sizes.values())

    def _put(self, video: VideoFile, entry: Entry, index: int, result: Mapping[str, Any]) -> bool:
        place = self._place(entry.job_id, index, video.format.suffix)
        copy = place.with_name(f"{spool_files.TEMPORARY}{secrets.token_hex(8)}{place.suffix}")
        try:
            if spool_files.copy(video.path, copy) != video.sha256:
                logger.warning("video %d was damaged on the worker's disk and is not kept for a later upload", index)
                return False
            beside = {POSTER_SUFFIX: video.poster, FRAMES_SUFFIX: video.frames}
            for suffix, path in beside.items():
                if path is not None:
                    spool_files.copy(path, copy.with_suffix(suffix))
            with locks.locked(self._state.folder("locks") / "spool.lock", wait_s=_LOCK_WAIT_S):
                known = self._journal.named(stem_of(entry.job_id))
                if known is not None and index in known.unstored and place.exists():
                    return False
                self._make_room()
                # The record first: the video counts once its own file is in place.
                if not self._journal.record_unstored(entry, index, result):
                    return False
                for suffix, path in beside.items():
                    if path is not None:
                        copy.with_suffix(suffix).replace(place.with_suffix(suffix))
                copy.replace(place)
        finally:
            spool_files.remove(copy)
        return True

    def _make_room(self) -> None:
        """Remove the oldest videos until all files together, and one video more than there are, fit the bounds."""
        sizes = spool_files.sizes(self._folder())
        oldest = sorted(spool_files.videos(sizes), key=lambda place: sizes[place].st_mtime_ns)
        size_bytes, videos = sum(status.st_size for status in sizes.values()), len(oldest) + 1
        for place in oldest:
            if size_bytes <= self._bounds.size_bytes and videos <= self._bounds.videos:
                return
            # The video that a worker is storing stays.
            with suppress(BlockingIOError, FileNotFoundError), locks.claim(place):
                spool_files.remove(place)
                logger.warning("the kept video %s goes: newer ones need its room", place.stem)
                size_bytes -= sum(sizes[path].st_size for path in spool_files.files_of(place) if path in sizes)
                videos -= 1

    def _forward(
        self, place: Path, storage: Storage, stop: Flag | None, *, drained: bool = False
    ) -> dict[str, Any] | None:
        """Store one video, record it and remove it; returns its result, None where the file was of no use.

        Raises UploadFailed and Cancelled with the video kept, BlockingIOError where another worker has it or stores
        its own, other OSErrors.
        """
        with locks.claim(place):
            name = spool_files.NAME.fullmatch(place.name)
            entry = None if name is None else self._journal.named(name[1])
            kept = None if name is None or entry is None else entry.unstored.get(int(name[2]))
            if name is None or entry is None or kept is None:
                return None  # left for `_sweep`
            if drained and kept["video_url"]:
                return None  # its address comes with its job alone
            with job_scope(entry.job_id), self._journal.storing(entry.job_id, int(name[2]), wait_s=0.0):
                return self._store(place, entry, int(name[2]), storage, stop)

    def _store(
        self, place: Path, entry: Entry, index: int, storage: Storage, stop: Flag | None
    ) -> dict[str, Any] | None:
        key, known = video_key(entry.job_id, index, entry.accepted_on), entry.finished.get(index)
        if known is not None and storage.holds(key + suffix_of(known), sha256=known["sha256"], stop=stop):
            result = refreshed(known, key, storage)
        else:
            video = spool_files.whole(place, entry.unstored[index])
            if video is None:
                return None
            result = _stored(video, entry.unstored[index], key, storage, stop)
        self._journal.record_result(entry.job_id, index, result, replacing=known)
        now = self._journal.entry(entry.job_id)
        if now is not None and index in now.finished:
            spool_files.remove(place)
        return result

    def _sweep(self) -> None:
        """Remove what no entry of the journal has as unstored. Raises OSError."""
        entries: dict[str, Entry | None] = {}
        for path, status in spool_files.sizes(self._folder()).items():
            age_s = self._now() - status.st_mtime
            if age_s <= _UNKNOWN_KEEP_S:
                continue
            name = spool_files.NAME.fullmatch(path.name)
            if name is None:
                useless = path.name.startswith(spool_files.TEMPORARY) or age_s > files.KEEP_S
            else:
                if name[1] not in entries:
                    entries[name[1]] = self._journal.named(name[1])
                entry = entries[name[1]]
                useless = entry is None or int(name[2]) not in entry.unstored
            if useless:
                path.unlink(missing_ok=True)

    def _take_over(self) -> None:
        spool_before.take_over(self._folder(), self._journal, self._place)

    def _place(self, job_id: str, index: int, suffix: str) -> Path:
        """The file of a kept video; its poster and ZIP have the same stem."""
        return self._folder() / f"{stem_of(job_id)}-{index:02d}{suffix}"

    def _folder(self) -> Path:
        return self._state.folder(_FOLDER)


def _stored(
    video: VideoFile, result: Mapping[str, Any], key: str, storage: Storage, stop: Flag | None
) -> dict[str, Any]:
    """Store `video`; returns `result` with its URLs and seconds. Raises UploadFailed and Cancelled."""
    began = time.perf_counter()
    with timing.timed(result["index"], "upload", size_bytes=video.size_bytes):
        delivery = storage.store(video, key, stop=stop)
    seconds = time.perf_counter() - began
    timings = dict(result["timings"])
    for stage in ("upload", "total"):  # the attempts that failed stay counted, the time in the spool does not count
        timings[stage] = round(timings.get(stage, 0.0) + seconds, 3)
    logger.info("a kept video is stored: %s", key)
    return with_links({**result, "timings": timings}, delivery)
