"""Fetching the files of a video: resumed where the line broke, checked against the size and hash in the answer."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import shutil
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from .core import Pause, Timing
from .errors import DownloadCorrupt, DownloadFailed, VideoFailed

File = Literal["video", "thumbnail", "frames", "preview"]
ATTEMPTS = 5  # in a row that bring nothing
_GONE = (401, 403, 404, 410)


@dataclass(frozen=True)
class Fetch:
    """Append to `part` what is behind `url` from byte `start` on; the shell sends back a `Fetched`.

    A server that answers 200 sends the whole: then `part` begins again. Not more than `limit` bytes are written.
    `on_bytes` gets how many are there.
    """

    url: str
    part: Path
    start: int
    limit: int | None
    deadline: float
    on_bytes: Callable[[int], None]


@dataclass(frozen=True)
class Fetched:
    """`status` is 0 where no answer came; `is_whole`: the line did not break before the end."""

    status: int
    is_whole: bool


def download(
    video: Mapping[str, Any],
    target: Path,
    file: File,
    *,
    timeout_s: float,
    timing: Timing,
    clock: Callable[[], float],
    is_local: bool,
    overwrite: bool,
    on_bytes: Callable[[int], None],
) -> Generator[Any, Any, Path]:
    """Writes `target`, whole or not at all. What is there already with the right hash is not fetched again.

    Raises VideoFailed for a video that was not made, DownloadFailed and DownloadCorrupt, and FileExistsError where
    another file is there that is not to be overwritten.
    """
    if video.get("status") == "failed":
        error = video["error"]
        raise VideoFailed(error["code"], error["message"], path=error["path"], retryable=error["retryable"])
    url = video.get(f"{file}_url")
    sha256, size = (video.get("sha256"), video.get("size_bytes")) if file == "video" else (None, None)
    if target.exists() and sha256 is not None and _digest(target) == sha256:
        return target
    _make_way(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{(sha256 or file)[:12]}.part")
    if sha256 is None:
        part.unlink(missing_ok=True)  # nothing says whether it is of the same file
    if file == "video" and video.get("video_base64") is not None:
        _decode(video["video_base64"], part)
        _check(part, sha256, size)
    elif isinstance(url, str) and url.startswith("file:"):
        _copy(url, part, is_local=is_local)
        _check(part, sha256, size)
    elif isinstance(url, str):
        yield from _fetch(url, part, sha256, size, clock() + timeout_s, timing, clock, on_bytes)
    else:
        raise DownloadFailed(f"the video has no {file}_url: ask for the file in the request", retryable=False)
    _make_way(target, overwrite=overwrite)
    part.replace(target)
    return target


def _make_way(target: Path, *, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(errno.EEXIST, "is there already, and not overwritten", str(target))


def _fetch(
    url: str,
    part: Path,
    sha256: str | None,
    size: int | None,
    deadline: float,
    timing: Timing,
    clock: Callable[[], float],
    on_bytes: Callable[[int], None],
) -> Generator[Any, Any, None]:
    failed, corrupt = 0, 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        if size is not None and start > size:
            part.unlink()
            start = 0
        if size is None or start < size:
            fetched: Fetched = yield Fetch(url, part, start, size, deadline, on_bytes)
            if fetched.status in _GONE:
                message = (
                    "the link has expired or the file is gone: send the job again under the same job_id for another"
                )
                raise DownloadFailed(f"the storage answered {fetched.status}: {message}", retryable=False)
            if fetched.status == 416:
                part.unlink(missing_ok=True)
        else:
            fetched = Fetched(200, is_whole=True)
        if fetched.is_whole:
            try:
                return _check(part, sha256, size)
            except DownloadCorrupt:
                corrupt += 1
                if corrupt == 2:
                    raise
                continue
        failed = 0 if part.exists() and part.stat().st_size > start else failed + 1
        if failed == ATTEMPTS or clock() >= deadline:
            reason = f"it answered {fetched.status}" if fetched.status >= 300 else "the connection broke"
            raise DownloadFailed(f"the file could not be fetched from the storage: {reason}")
        yield Pause(min(timing.longest_wait_s, timing.first_wait_s * 2.0**failed) if failed else 0.0)


def _check(part: Path, sha256: str | None, size: int | None) -> None:
    """Raises DownloadCorrupt, and removes the file, where it is not what the answer says."""
    found = part.stat().st_size
    if (size is None or found == size) and (sha256 is None or _digest(part) == sha256):
        return
    part.unlink()
    what = "its hash differs" if size is None or found == size else f"it has {found} bytes instead of {size}"
    raise DownloadCorrupt(f"what arrived is not what the worker made: {what}")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _decode(text: str, part: Path) -> None:
    try:
        part.write_bytes(base64.b64decode(text, validate=True))
    except binascii.Error as failure:
        raise DownloadCorrupt("video_base64 is not base64") from failure


def _copy(url: str, part: Path, *, is_local: bool) -> None:
    source = Path(unquote(urlsplit(url).path))
    if not is_local or not source.is_file():
        message = "the file is on the worker's own disk: configure a bucket for the worker, then send the job again"
        raise DownloadFailed(message, retryable=False)
    shutil.copyfile(source, part)
