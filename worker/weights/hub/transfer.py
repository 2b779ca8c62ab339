"""Bytes from the hub into a partial file: continued, hashed on the way, retried with patience, shown as progress."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx2
from huggingface_hub import constants, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils.tqdm import tqdm

from worker.base.errors import Cancelled
from worker.weights.hub.failures import is_transient

logger = logging.getLogger(__name__)

_READ_BYTES = 1024 * 1024
_STOP_POLL_S = 0.2


class Abort:
    """Ends every transfer of one download: set by the caller's `stop`, or by `fail` when one file has failed."""

    def __init__(self, stop: threading.Event | None) -> None:
        self._stop = stop
        self._failed = threading.Event()

    def fail(self) -> None:
        self._failed.set()

    def is_set(self) -> bool:
        return self._failed.is_set() or (self._stop is not None and self._stop.is_set())

    def check(self) -> None:
        """Raises Cancelled once the download is to end."""
        if self.is_set():
            raise Cancelled("the worker was stopped while it downloaded the model")

    def sleep(self, seconds: float) -> None:
        """Wait, unless the download is to end: then raise Cancelled."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, _STOP_POLL_S))
        self.check()


@dataclass(frozen=True, slots=True)
class Retries:
    """`count` failures in a row, without a byte between them, are forgiven: by default 1 + 2 + 4 + 8 + 16 s of waiting.

    `max_retry_after_s` bounds what the hub's Retry-After may ask for.
    """

    count: int = 5
    backoff_s: float = 1.0
    max_retry_after_s: float = 60.0


class HubPatience:
    """How often a failing hub is asked again, within one download; `abort` ends the waiting."""

    def __init__(self, abort: Abort, retries: Retries | None = None) -> None:
        self.abort = abort
        self._retries = retries if retries is not None else Retries()
        self._failures = 0

    def fresh(self) -> HubPatience:
        """The same patience for another request of the download: failures are counted for each."""
        return HubPatience(self.abort, self._retries)

    def reset(self) -> None:
        self._failures = 0

    def pause(self, failure: Exception) -> None:
        """Wait before the next attempt; raises `failure` where no further attempt is due."""
        self._failures += 1
        if not is_transient(failure) or self._failures > self._retries.count:
            raise failure
        asked_s = min(_retry_after_s(failure), self._retries.max_retry_after_s)
        wait_s = max(self._retries.backoff_s * 2 ** (self._failures - 1), asked_s)
        logger.warning(
            "the hub failed (%s); attempt %d of %d in %.0f s",
            _brief(failure),
            self._failures,
            self._retries.count,
            wait_s,
        )
        self.abort.sleep(wait_s)


def _retry_after_s(failure: Exception) -> float:
    value = failure.response.headers.get("Retry-After", "") if isinstance(failure, HfHubHTTPError) else ""
    return float(value) if value.isdigit() else 0.0


def _brief(failure: Exception) -> str:
    if isinstance(failure, HfHubHTTPError):
        return f"HTTP {failure.response.status_code}"
    return type(failure).__name__


class TransferProgress:
    """Bytes of a whole model, over every thread: a bar on a terminal, a line of the log every `log_every_s`.

    `on_bytes(done, total)` is called from the transferring threads, one at a time.
    """

    def __init__(
        self,
        title: str,
        total: int,
        on_bytes: Callable[[int, int], None] | None = None,
        *,
        log_every_s: float = 10.0,
    ) -> None:
        self._title = title
        self._total = total
        self._on_bytes = on_bytes
        self._log_every_s = log_every_s
        self._lock = threading.Lock()
        self._done = self._received = 0
        self._started = self._logged = time.monotonic()
        # disable=None: no bar where the log is not a terminal.
        self._bar = tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=None)  # type: ignore[no-untyped-call]

    def __enter__(self) -> TransferProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, count: int, *, received: bool = False) -> None:
        """`count` bytes more are stored (fewer where negative); `received`: they were sent by the hub just now."""
        with self._lock:
            self._done += count
            self._received += count if received else 0
            self._bar.update(count)
            if self._on_bytes is not None:
                self._on_bytes(self._done, self._total)
            if time.monotonic() - self._logged >= self._log_every_s:
                self._logged = time.monotonic()
                self._log()

    def _log(self) -> None:
        rate = self._received / max(time.monotonic() - self._started, 1e-3)
        percent = 100 * self._done // max(self._total, 1)
        logger.info(
            "%s: %.2f of %.2f GB (%d%%), %.0f MB/s",
            self._title,
            self._done / 1e9,
            self._total / 1e9,
            percent,
            rate / 1e6,
        )


class PartialFile:
    """A file that grows to `size` bytes, and the sha256 of what it holds; bytes of an earlier attempt are kept."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.have = 0
        self._hasher = hashlib.sha256()

    def __enter__(self) -> PartialFile:
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        while piece := self._file.read(_READ_BYTES):
            self._hasher.update(piece)
            self.have += len(piece)
        if self.have > self.size:
            self.restart()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, piece: bytes) -> None:
        self._file.write(piece)
        self._file.flush()  # what a buffer held would be lost with a killed worker
        self._hasher.update(piece)
        self.have += len(piece)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hasher = hashlib.sha256()
        self.have = 0

    def finish(self) -> str:
        """Wait until the disk has the bytes (a network volume may report its quota only now); returns their sha256."""
        os.fsync(self._file.fileno())
        return self._hasher.hexdigest()


def receive(
    url: str, headers: Mapping[str, str], partial: PartialFile, *, patience: HubPatience, progress: TransferProgress
) -> None:
    """Fetch what `partial` still lacks. Raises what the hub client and httpx2 raise, OSError, or Cancelled."""
    patience = patience.fresh()
    progress.add(partial.have)
    while partial.have < partial.size:
        before = partial.have
        try:
            _stream(url, headers, partial, patience.abort, progress)
        except (HfHubHTTPError, httpx2.TransportError) as failure:
            if partial.have > before:
                patience.reset()
            patience.pause(failure)


def _stream(
    url: str, headers: Mapping[str, str], partial: PartialFile, abort: Abort, progress: TransferProgress
) -> None:
    # identity: a compressed body could not be continued at a byte of the file.
    asked = {**headers, "Accept-Encoding": "identity", "Range": f"bytes={partial.have}-"}
    before = partial.have
    abort.check()
    with get_session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            before = _restart(partial, progress)
            raise httpx2.RemoteProtocolError("the hub refused to continue the file")
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        if response.status_code != httpx2.codes.PARTIAL_CONTENT and partial.have:
            before = _restart(partial, progress)
        for piece in response.iter_bytes():
            abort.check()
            piece = piece[: partial.size - partial.have]
            partial.write(piece)
            progress.add(len(piece), received=True)
            if partial.have == partial.size:
                return
    if partial.have == before:
        raise httpx2.RemoteProtocolError("the hub sent nothing")


def _restart(partial: PartialFile, progress: TransferProgress) -> int:
    progress.add(-partial.have)
    partial.restart()
    return 0
