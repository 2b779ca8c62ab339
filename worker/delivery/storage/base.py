"""What every storage promises, and the one recipe by which a video and its poster are stored.

The video is stored first and the poster after it, so that a failed video leaves no poster behind. The URLs are returned
when both are complete. A poster that cannot be stored costs the thumbnail (`thumbnail_url` is None, with a warning in
the log), never the video.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from worker.base import metrics
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.media import VideoFile

logger = logging.getLogger(__name__)

VIDEO_SUFFIX = ".mp4"
POSTER_SUFFIX = ".jpg"


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a stored video can be found. The URLs are what the caller receives."""

    video_url: str
    thumbnail_url: str | None


class Storage(Protocol):
    """A place for finished videos. Safe to call from several threads at once."""

    def store(self, video: VideoFile, key: str) -> Delivery:
        """Write `key` + ".mp4" and, where the video has a poster, `key` + ".jpg".

        `key` is that of `video_key`, without a suffix; what is stored under it already is replaced. Blocks until both
        are complete and checked; leaves the files of `video` in place. Raises UploadFailed where the video could not be
        stored; an incomplete file is never visible.
        """
        ...

    def holds(self, key: str, *, sha256: str) -> bool:
        """Whether the video that `store` put under `key` is still there; asks once, in seconds.

        False where it is gone, or where what is stored there is known to have another digest. Raises UploadFailed where
        the storage cannot be asked.
        """
        ...

    def links(self, key: str, *, poster: bool) -> Delivery:
        """New URLs of what `store` put under `key`, without asking the storage. `poster`: one was stored too."""
        ...

    def sweep(self) -> None:
        """Remove what killed workers left half-written, of this worker's own kind and older than a day.

        Bounded in time; raises nothing; may be called by several workers at once.
        """
        ...

    def describe(self) -> str:
        """The storage in words for the log of the start; holds no secret."""
        ...


class StorageKind(Protocol):
    """The class of a storage, as the registry sees it."""

    def is_configured(self, settings: Settings) -> bool: ...

    def from_settings(self, settings: Settings) -> Storage: ...


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file on its way into the storage. `sha256` is the hex digest that its bytes must have."""

    path: Path
    key: str
    content_type: str
    size_bytes: int
    sha256: str


def video_key(job_id: str, index: int, day: datetime.date) -> str:
    """The key of one video, without a suffix: `videos/2026-11-21/abc-123/0`.

    `day` is the UTC day on which the job was first accepted: a redelivered job then writes the same object.
    """
    return f"videos/{day:%Y-%m-%d}/{job_id}/{index}"


def deliver(video: VideoFile, key: str, put: Callable[[StoredFile], str]) -> Delivery:
    """Store a video and its poster. `put` writes one file and returns its URL, or raises UploadFailed."""
    item = StoredFile(video.path, key + VIDEO_SUFFIX, "video/mp4", video.size_bytes, video.sha256)
    video_url = _counted(put, item, "video")
    thumbnail_url = None
    if video.poster is not None:
        try:
            thumbnail_url = _counted(put, _poster(video.poster, key + POSTER_SUFFIX), "poster")
        except (UploadFailed, OSError) as failure:
            logger.warning("the poster %s was not stored: %s", key + POSTER_SUFFIX, type(failure).__name__)
    return Delivery(video_url, thumbnail_url)


def _counted(put: Callable[[StoredFile], str], item: StoredFile, file: Literal["video", "poster"]) -> str:
    try:
        url = put(item)
    except BaseException:
        metrics.upload_attempt(file, None)
        raise
    metrics.upload_attempt(file, item.size_bytes)
    return url


def links(key: str, url: Callable[[str], str], *, poster: bool) -> Delivery:
    """The URLs of a stored video and its poster. `url` makes that of one key."""
    return Delivery(url(key + VIDEO_SUFFIX), url(key + POSTER_SUFFIX) if poster else None)


def _poster(path: Path, key: str) -> StoredFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return StoredFile(path, key, "image/jpeg", stream.tell(), digest)


def check_unchanged(item: StoredFile, sha256: str) -> None:
    """Raise UploadFailed where the bytes that were read are not those that were encoded."""
    if sha256 != item.sha256:
        raise UploadFailed("the encoded file was damaged on the worker's disk before it was stored: send the job again")
