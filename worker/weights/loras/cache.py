"""Downloaded LoRA files, kept under the hash of their content.

    {MODEL_CACHE_DIR}/loras/NAME.safetensors            put there by the operator; never changed
    {MODEL_CACHE_DIR}/loras/.cache/SHA256.safetensors   downloaded; the least recently used are removed first
    {MODEL_CACHE_DIR}/loras/.cache/KEY.source           the hash of what a source held last; KEY is the source's sha256

A source may be a signed URL, so only its hash is written down. A file appears whole or not at all, and its content is
compared with its name once a process. Where the folder cannot be written, a temporary one is used instead.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from worker.base import metrics
from worker.base.errors import ModelUnavailable
from worker.base.files import is_temporary, sha256_of, write_atomically
from worker.base.scratch import ScratchFolder

logger = logging.getLogger(__name__)

MAX_BYTES = 20_000_000_000
# A file that was just given to a job must still be there when the job reads it.
KEEP_S = 3600.0
_SUFFIX = ".safetensors"
_PART = ".part"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class LoraCache:
    """A folder of LoRAs by hash; safe to use from several threads and by several workers of one volume."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._spare: Path | None = None
        self._hashes: dict[tuple[str, int, int], str] = {}
        self._lock = threading.Lock()

    def sha256_of(self, path: Path) -> str:
        """The hash of a file, computed once as long as size and time of the file stay. Raises OSError."""
        state = path.stat()
        key = (str(path), state.st_size, state.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = sha256_of(path)
        return self._hashes[key]

    def find(self, sha256: str) -> Path | None:
        """The intact file of that content, marked as used now, or None. A damaged one is removed."""
        for folder in self._folders():
            path = folder / f"{sha256}{_SUFFIX}"
            with suppress(OSError):
                if self.sha256_of(path) == sha256:
                    _touch(path)
                    metrics.cache("lora", hit=True)
                    return path
                logger.warning("the cached LoRA %s is damaged: it is removed", path.name)
                path.unlink()
        return None

    def known(self, source: str) -> tuple[str, float] | None:
        """The hash that `source` had when it was last fetched, and how many seconds ago that was."""
        for folder in self._folders():
            with suppress(OSError, UnicodeDecodeError):
                note = folder / _note_name(source)
                sha256 = note.read_text(encoding="ascii")
                if _SHA256.fullmatch(sha256):
                    return sha256, abs(time.time() - note.stat().st_mtime)
        return None

    def take(self, source: str, fetch: Callable[[Path], str]) -> tuple[Path, str]:
        """Keep what `fetch` writes to the new file that it is given, under the hash that it returns.

        Raises what `fetch` raises, with nothing kept. Where the folder fails (OSError), a temporary one is used; where
        that fails too: ModelUnavailable.
        """
        metrics.cache("lora", hit=False)
        try:
            return self._take_into(self._writable(), source, fetch)
        except OSError as failure:
            broken = failure
        try:
            self._use_spare(broken)
            return self._take_into(self._writable(), source, fetch)
        except OSError as failure:
            raise ModelUnavailable("this worker has no room left for the LoRA: try again later") from failure

    def _take_into(self, folder: Path, source: str, fetch: Callable[[Path], str]) -> tuple[Path, str]:
        part = folder / f"{uuid.uuid4().hex}{_PART}"
        try:
            sha256 = fetch(part)
            path = folder / f"{sha256}{_SUFFIX}"
            part.replace(path)
            write_atomically(folder / _note_name(source), sha256.encode("ascii"), mode=0o666)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
        # It was hashed while it was written.
        state = path.stat()
        self._hashes[(str(path), state.st_size, state.st_mtime_ns)] = sha256
        _touch(path)
        self._evict(folder)
        return path, sha256

    def _folders(self) -> Iterator[Path]:
        yield self._folder
        if self._spare is not None:
            yield self._spare

    def _writable(self) -> Path:
        if self._spare is not None:
            return self._spare
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder

    def _use_spare(self, failure: OSError) -> None:
        """Use a temporary folder from now on; it is removed when the process ends."""
        with self._lock:
            if self._spare is None:
                reason = failure.strerror or type(failure).__name__
                logger.warning("LoRAs cannot be kept in %s (%s): a temporary folder is used", self._folder, reason)
                spare = ScratchFolder("loras")
                self._spare = spare.path
                weakref.finalize(self, spare.close)

    def _evict(self, folder: Path) -> None:
        """Remove the least recently used files beyond the bound, and what broken downloads left behind."""
        now = time.time()
        total = 0
        used: list[tuple[float, int, Path]] = []
        with suppress(OSError):
            for path in folder.iterdir():
                # Another worker may remove it at the same time.
                with suppress(FileNotFoundError):
                    state = path.stat()
                    if path.suffix == _SUFFIX:
                        used.append((state.st_atime, state.st_size, path))
                        total += state.st_size
                    elif (path.suffix == _PART or is_temporary(path.name)) and now - state.st_mtime > KEEP_S:
                        path.unlink()
        for last_use, size, path in sorted(used):
            if total <= self._max_bytes:
                return
            if now - last_use > KEEP_S:
                logger.info("the cached LoRA %s was not used for long: it is removed", path.name)
                with suppress(OSError):
                    path.unlink()
                    total -= size


def _note_name(source: str) -> str:
    return f"{hashlib.sha256(source.encode('utf-8', 'surrogatepass')).hexdigest()}.source"


def _touch(path: Path) -> None:
    """Mark as used now. The time of change stays: by it the hash is still known."""
    with suppress(OSError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
