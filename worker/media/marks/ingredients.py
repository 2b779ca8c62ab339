"""What goes into a video of the caller's, as the C2PA manifest of the video keeps it.

A picture's or video's own manifest says who made it and how: it travels on, as an ingredient. The file is read while it
is available, long before the video exists. It is a stranger's, so a bounded process does it (`read_ingredient.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import IO

import PIL

from worker.media import sandbox
from worker.media.marks import read_ingredient
from worker.media.marks.provenance import described

logger = logging.getLogger(__name__)

MAX_BYTES = 2_000_000
BOUNDS = sandbox.Bounds(memory_bytes=2_000_000_000, cpu_s=30, file_bytes=MAX_BYTES, wall_s=60.0)


class Ingredients:
    """Collects what goes into one video, each file once; `archives` are in the order in which it was added.

    Where not `wanted` it does nothing. Each has `max_bytes` at most. Of a file that cannot be read it keeps nothing,
    b"", with a line in the log.
    """

    def __init__(self, *, wanted: bool, stop: threading.Event | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._wanted = wanted
        self._stop = stop
        self._bounds = replace(BOUNDS, file_bytes=max_bytes)
        self._archives: list[bytes] = []
        self._known: set[str] = set()

    @property
    def archives(self) -> tuple[bytes, ...]:
        return tuple(self._archives)

    def add(self, source: bytes | Path) -> None:
        """Blocks, for about a third of a second. Raises Cancelled."""
        digest = _digest(source) if self._wanted else ""
        if not self._wanted or digest in self._known:
            return
        self._known.add(digest)
        number = len(self._archives)
        try:
            with tempfile.TemporaryFile() if isinstance(source, bytes) else source.open("rb") as file:
                if isinstance(source, bytes):
                    file.write(source)
                    file.seek(0)
                archive = _read(file, number, self._bounds, self._stop)
        except OSError as failure:
            archive = b""
            logger.warning("what a reference file says of its origin could not be read (%s)", type(failure).__name__)
        self._archives.append(archive)


def _digest(source: bytes | Path) -> str:
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(file: IO[bytes], number: int, bounds: sandbox.Bounds, stop: threading.Event | None) -> bytes:
    """The archive; nothing where the file cannot be read."""
    program, packages = read_ingredient.__file__, str(Path(PIL.__file__).parents[1])
    command = [sys.executable, "-I", "-S", program, packages, json.dumps(described(number))]
    with tempfile.TemporaryFile() as result:
        with sandbox.running(command, bounds, stdin=file, stdout=result, stop=stop) as child:
            try:
                child.wait()
                whole = child.ended_well()
            except sandbox.TooSlow:
                whole = False
        result.seek(0)
        archive = result.read(bounds.file_bytes)
    if not whole:
        logger.warning("a reference file is of a kind that cannot hold what C2PA says of its origin, or is damaged")
    return archive if whole else b""
