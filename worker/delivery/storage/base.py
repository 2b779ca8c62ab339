"""What every storage promises, and the one recipe by which a video and the files beside it are stored.

The video is stored first, its poster and the ZIP of its frames after it, so that a failed video leaves neither behind.
The URLs are returned when all are complete. A poster or ZIP that cannot be stored costs its URL (None, with a warning
in the log), never the video.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from worker.base import metrics
from worker.base.errors import UploadFailed
from worker.base.settings import Settings
from worker.base.stop import Flag
from worker.media import FORMATS, VideoFile

logger = logging.getLogger(__name__)

POSTER_SUFFIX = ".jpg"
FRAMES_SUFFIX = ".zip"
PREVIEW_SUFFIX = ".preview.webp"
LORA_SUFFIX = ".safetensors"
VIDEO_SUFFIXES = tuple(each.suffix for each in FORMATS.values())
UPLOAD_S = 180.0
LEAST_BYTES_A_SECOND = 250_000
_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTENT_TYPES = {
    POSTER_SUFFIX: "image/jpeg",
    FRAMES_SUFFIX: "application/zip",
    PREVIEW_SUFFIX: "image/webp",
    LORA_SUFFIX: "application/octet-stream",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where a stored video can be found. The URLs are what the caller receives."""

    video_url: str
    thumbnail_url: str | None
    frames_url: str | None = None
    preview_url: str | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a video that are stored under its key: the video, by its suffix, and which stand beside it."""

    suffix: str
    poster: bool = False
    frames: bool = False
    preview: bool = False

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Files:
        """Those of a video result. One of a worker that made nothing but MP4 names no format."""
        return cls(
            suffix_of(result),
            poster=result["thumbnail_url"] is not None,
            frames=result.get("frames_url") is not None,
            preview=result.get("preview_url") is not None,
        )


class Storage(Protocol):
    """A place for finished videos. Safe to call from several threads at once.

    A key is that of `video_key`, without a suffix. What blocks ends soon after `stop` is set, with Cancelled.
    """

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """Write `key` + the suffix of the video's format and, where the video has them, its poster and its ZIP.

        What is stored under these names already is replaced. Blocks until all are complete and checked; leaves the
        files of `video` in place. Raises UploadFailed where the video could not be stored; an incomplete file is never
        visible.
        """
        ...

    def store_beside(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """As `store`, for the poster and the ZIP alone; `video_url` is empty. Raises Cancelled alone."""
        ...

    def store_file(self, file: Path, name: str, *, stop: Flag | None = None) -> str:
        """Write a preview or a LoRA under `name`, suffix included, over an earlier one; returns its URL.

        Raises UploadFailed and Cancelled.
        """
        ...

    def holds(self, name: str, *, sha256: str, stop: Flag | None = None) -> bool:
        """Whether the video that `store` put under `name`, suffix included, is still there; asks once, in seconds.

        False where it is gone, or where what is stored there is known to have another digest. Raises UploadFailed where
        the storage cannot be asked.
        """
        ...

    def read(self, name: str, *, stop: Flag | None = None) -> bytes:
        """The bytes of the video that `store` put under `name`, suffix included; it should be small.

        Raises UploadFailed where it cannot be read.
        """
        ...

    def links(self, key: str, files: Files) -> Delivery:
        """New URLs of what `store` put under `key`, without asking the storage."""
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


def suffix_of(result: Mapping[str, Any]) -> str:
    """The suffix of the video of a result, of its preview where there is no video."""
    parameters = result.get("parameters", {})
    if parameters.get("preview_only", False):
        return PREVIEW_SUFFIX
    known = FORMATS.get(parameters.get("output_format", "mp4"))
    return VIDEO_SUFFIXES[0] if known is None else known.suffix


def training_key(job_id: str, day: datetime.date) -> str:
    """The folder of what one training makes: `loras/2026-11-21/abc-123`; `day` as for `video_key`."""
    return f"loras/{day:%Y-%m-%d}/{job_id}"


Put = Callable[[StoredFile], str]
"""Writes one file and returns its URL, or raises UploadFailed."""


def deliver(video: VideoFile, key: str, put: Put) -> Delivery:
    """Store a video, and then what stands beside it."""
    video_url = _counted(put, stored_video(video, key), "video")
    return replace(deliver_beside(video, key, put), video_url=video_url)


def deliver_beside(video: VideoFile, key: str, put: Put) -> Delivery:
    """Store the poster and the ZIP of a video, each as well as can be."""

    def beside(path: Path | None, suffix: str, file: metrics.UploadedFile) -> str | None:
        if path is None:
            return None
        try:
            return _counted(put, _measured(path, key, suffix), file)
        except (UploadFailed, OSError) as failure:
            logger.warning("the %s %s was not stored: %s", file, key + suffix, type(failure).__name__)
            return None

    return Delivery("", beside(video.poster, POSTER_SUFFIX, "poster"), beside(video.frames, FRAMES_SUFFIX, "frames"))


def deliver_file(file: Path, name: str, put: Put) -> str:
    """Store a preview or a LoRA. Raises UploadFailed."""
    suffix = LORA_SUFFIX if name.endswith(LORA_SUFFIX) else PREVIEW_SUFFIX
    try:
        item = _measured(file, name.removesuffix(suffix), suffix)
    except OSError as failure:
        raise UploadFailed(f"{name} could not be read on the worker's disk") from failure
    return _counted(put, item, "lora" if suffix == LORA_SUFFIX else "preview")


def _counted(put: Put, item: StoredFile, file: metrics.UploadedFile) -> str:
    try:
        url = put(item)
    except BaseException:
        metrics.upload_attempt(file, None)
        raise
    metrics.upload_attempt(file, item.size_bytes)
    return url


def links(key: str, files: Files, url: Callable[[str], str]) -> Delivery:
    """The URLs of a stored video and of what stands beside it. `url` makes that of one name."""
    return Delivery(
        url(key + files.suffix),
        url(key + POSTER_SUFFIX) if files.poster else None,
        url(key + FRAMES_SUFFIX) if files.frames else None,
        url(key + PREVIEW_SUFFIX) if files.preview else None,
    )


def with_links(result: Mapping[str, Any], delivery: Delivery) -> dict[str, Any]:
    """`result` with the URLs of `delivery`, as far as it has them: there may be no video, and no new preview."""
    urls: dict[str, str | None] = {"thumbnail_url": delivery.thumbnail_url}
    if suffix_of(result) != PREVIEW_SUFFIX:
        urls["video_url"] = delivery.video_url
    if "frames_url" in result:
        urls["frames_url"] = delivery.frames_url
    if delivery.preview_url is not None and not result["preview_url"].startswith("data:"):
        urls["preview_url"] = delivery.preview_url
    return {**result, **urls}


def refreshed(result: Mapping[str, Any], key: str, storage: Storage) -> dict[str, Any]:
    """The result of a video in the storage, with new URLs: presigned ones expire before the video does."""
    return with_links(result, storage.links(key, Files.of(result)))


def stored_video(video: VideoFile, key: str) -> StoredFile:
    """The file of the video itself."""
    form = video.format
    return StoredFile(video.path, key + form.suffix, form.content_type, video.size_bytes, video.sha256)


def _measured(path: Path, key: str, suffix: str) -> StoredFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return StoredFile(path, key + suffix, _CONTENT_TYPES[suffix], stream.tell(), digest)


def upload_s(size_bytes: int, least_s: float = UPLOAD_S) -> float:
    """The wall clock around an upload, over all its attempts."""
    return least_s + size_bytes / LEAST_BYTES_A_SECOND


def check_unchanged(item: StoredFile, sha256: str) -> None:
    """Raise UploadFailed where the bytes that were read are not those that were encoded."""
    if sha256 != item.sha256:
        raise UploadFailed("the encoded file was damaged on the worker's disk before it was stored: send the job again")


def check_etag(headers: Mapping[str, str], md5: str) -> None:
    """Raise UploadFailed where the ETag of a single put, which is the MD5 of its bytes, is not `md5` (hex digits).

    `headers` are those of the response, in lower case. Where the server encrypts with keys of its own or the caller's,
    the ETag only looks like an MD5.
    """
    if "x-amz-server-side-encryption-customer-algorithm" in headers:
        return
    if headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
        return
    etag = headers.get("etag", "").strip('"').lower()
    if _MD5.fullmatch(etag) and etag != md5:
        logger.warning("the storage answered with the ETag of other bytes than were sent")
        raise UploadFailed("the upload was damaged on its way to the storage: send the job again")
