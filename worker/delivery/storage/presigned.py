"""The caller's own store: a presigned address for one video, to which it is PUT through the guarded door.

The address is a secret: whoever has it may write there. No log, error, journal or spool holds its query; the video's
URL is the address without it. What stands beside the video goes to the worker's own bucket, where there is one.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from worker.base.errors import Cancelled, UploadFailed
from worker.base.stop import Flag
from worker.delivery.storage.base import (
    Delivery,
    Files,
    Storage,
    StoredFile,
    check_etag,
    check_unchanged,
    stored_video,
    upload_s,
)
from worker.media import VideoFile
from worker.net import PostAnswer, PostFailed

logger = logging.getLogger(__name__)

WAITS_S = (1.0, 2.0, 4.0, 8.0)
_POLL_S = 0.1
# Of 4xx these alone may pass by themselves.
_ASK_AGAIN = frozenset({408, 425, 429})


class Uploader(Protocol):
    """The part of `net.Opener` that is used here."""

    def put(
        self,
        url: str,
        file: Path,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        path: str,
        stop: Flag | None = None,
    ) -> PostAnswer: ...


class PresignedStorage:
    """A `Storage` for the video of one request, whose field `path` names `url`.

    `beside` takes its poster and ZIP; None: nothing does. A failed attempt is repeated after each of `waits_s`.
    """

    def __init__(
        self,
        url: str,
        *,
        path: str,
        opener: Uploader,
        beside: Storage | None,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        self._url = url
        self._path = path
        self._opener = opener
        self._beside = beside
        self._waits_s = waits_s
        self.video_url = urlsplit(url)._replace(query="", fragment="").geturl()

    def describe(self) -> str:
        return "an address of the caller's"

    def store(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """See `Storage.store`. Raises InputBlocked for an address that may not be reached."""
        try:
            self._put(stored_video(video, key), stop)
        except OSError as failure:
            raise UploadFailed("the encoded file could not be read on the worker: send the job again") from failure
        return replace(self.store_beside(video, key, stop=stop), video_url=self.video_url)

    def store_beside(self, video: VideoFile, key: str, *, stop: Flag | None = None) -> Delivery:
        """See `Storage.store_beside`."""
        return Delivery("", None) if self._beside is None else self._beside.store_beside(video, key, stop=stop)

    def store_file(self, file: Path, name: str, *, stop: Flag | None = None) -> str:
        """See `Storage.store_file`."""
        if self._beside is None:
            raise UploadFailed("upload_url takes the video alone and no bucket is configured", path=self._path)
        return self._beside.store_file(file, name, stop=stop)

    def holds(self, name: str, *, sha256: str, stop: Flag | None = None) -> bool:  # noqa: ARG002
        """What was put there counts as stored: the address cannot be asked."""
        return True

    def read(self, name: str, *, stop: Flag | None = None) -> bytes:  # noqa: ARG002
        raise UploadFailed("what was put to an address of the caller's cannot be read back", path=self._path)

    def links(self, key: str, files: Files) -> Delivery:
        """See `Storage.links`."""
        known = Delivery("", None) if self._beside is None else self._beside.links(key, files)
        return replace(known, video_url=self.video_url)

    def sweep(self) -> None:
        """See `Storage.sweep`."""

    def _put(self, item: StoredFile, stop: Flag | None) -> None:
        with item.path.open("rb") as stream:
            check_unchanged(item, hashlib.file_digest(stream, "sha256").hexdigest())
            stream.seek(0)
            md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        ends_at = time.monotonic() + upload_s(item.size_bytes)
        for wait_s in (*self._waits_s, None):
            try:
                self._attempt(item, md5, ends_at - time.monotonic(), stop)
            except _Later as failure:
                if wait_s is None or time.monotonic() + wait_s >= ends_at:
                    raise UploadFailed(f"the store {failure}: send the job again", path=self._path) from failure
                logger.info("the upload of %s to the caller's address: the store %s", item.key, failure)
                _rest(wait_s, stop)
            else:
                logger.info("stored %s at the caller's address: %d bytes", item.key, item.size_bytes)
                return

    def _attempt(self, item: StoredFile, md5: str, timeout_s: float, stop: Flag | None) -> None:
        """Raises _Later where another attempt may help, else UploadFailed."""
        described = {"Content-Type": item.content_type}
        try:
            answer = self._opener.put(self._url, item.path, described, timeout_s=timeout_s, path=self._path, stop=stop)
        except PostFailed as failure:
            raise _Later(failure.reason) from failure
        if 200 <= answer.status < 300:
            check_etag(answer.headers, md5)
            return
        said = f"answered with HTTP status {answer.status}"
        if answer.status >= 500 or answer.status in _ASK_AGAIN:
            raise _Later(said)
        if 300 <= answer.status < 400:
            raise UploadFailed(f"the store {said}: a redirect is not followed, send its final address", path=self._path)
        raise UploadFailed(
            f"the store {said}: the URL has expired, or refuses a PUT of {item.content_type}; send a new one",
            path=self._path,
        )


class _Later(Exception):
    """An attempt failed in a way that may pass; the text says how, as part of a sentence."""


def _rest(seconds: float, stop: Flag | None) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if stop is not None and stop.is_set():
            raise Cancelled
        time.sleep(min(_POLL_S, seconds))
