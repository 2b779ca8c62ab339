"""Fetches the videos of a job's answer: resumed where the connection broke, and checked against their hash."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import requests

from worker.cli import out
from worker.cli.failures import CommandFailed

CHUNK_BYTES = 64 * 1024
TIMEOUT_S = (10.0, 60.0)  # to connect, of silence
ATTEMPTS = 4
PAUSE_S = 1.0
_GONE = (401, 403, 404, 410)


class _Broken(Exception):
    """This attempt failed; another may not. The message is for the case that none does."""


def fetch(
    url: str, target: Path, *, sha256: str | None, force: bool, on_bytes: Callable[[int], None] = lambda _bytes: None
) -> None:
    """Write what is behind `url` to `target`, whole or not at all; `on_bytes` is called with the bytes fetched so far.

    What is there already with that hash is not fetched again. A download that broke off is resumed, also in a later
    run. Raises CommandFailed with what to do about it.
    """
    if target.exists() and sha256 is not None and _digest(target) == sha256:
        return
    if target.exists() and not force:
        raise CommandFailed(f"{target} is there already: give another name, or --force")
    if not url.lower().startswith(("http://", "https://")):
        raise CommandFailed(
            "the video is on the worker's own disk, where nobody can fetch it: configure a bucket for the endpoint "
            "(DIGITAL_OCEAN_*), then send the job again"
        )
    part = target.with_name(f".{target.name}.{(sha256 or 'poster')[:12]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tried(url, part, sha256, on_bytes)
        out.publish(part, target, force=force)
    except OSError as failure:
        raise CommandFailed(f"{target} could not be written: {failure.strerror or failure}") from failure


def _tried(url: str, part: Path, sha256: str | None, on_bytes: Callable[[int], None]) -> None:
    for attempt in range(ATTEMPTS):
        try:
            _receive(url, part, resumed=sha256 is not None, on_bytes=on_bytes)
            if sha256 is not None and _digest(part) != sha256:
                part.unlink()
                raise _Broken("what arrived is not what the worker made: its hash differs")
            return
        except _Broken as failure:
            if attempt == ATTEMPTS - 1:
                raise CommandFailed(f"the video could not be fetched: {failure}") from failure
            time.sleep(PAUSE_S * 2**attempt)


def _receive(url: str, part: Path, *, resumed: bool, on_bytes: Callable[[int], None]) -> None:
    start = part.stat().st_size if resumed and part.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            _judge(response, part)
            start = start if response.status_code == 206 else 0
            with part.open("ab" if start else "wb") as file:
                for piece in response.iter_content(CHUNK_BYTES):
                    file.write(piece)
                    start += len(piece)
                    on_bytes(start)
    except requests.RequestException as failure:
        raise _Broken("the connection broke") from failure


def _judge(response: requests.Response, part: Path) -> None:
    status = response.status_code
    if status == 416:  # nothing is left to send: the whole file is there, or it is another one
        part.unlink(missing_ok=True)
        raise _Broken("the storage cannot continue the download")
    if status in _GONE:
        raise CommandFailed(
            f"the storage answered {status}: the link has expired or the video is gone; send the job again with the "
            "same job_id, and the worker answers with a fresh link"
        )
    if not response.ok:
        raise _Broken(f"the storage answered {status}")


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
