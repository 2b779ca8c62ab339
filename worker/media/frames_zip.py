"""A ZIP of a video's frames as PNG, written while the frames pass by."""

from __future__ import annotations

import io
import os
import zipfile
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

# 1280x720: level 1 takes a third of the time of level 6 for a tenth more bytes.
PNG_LEVEL = 1
MAX_THREADS = 4


class FramesZip:
    """Writes `frame_00000.png`, `frame_00001.png`, ... to `path`; the same frames make the same bytes.

    Frames are compressed beside the caller's work; few are in memory at any time. `look`, `save` and the class itself
    raise OSError. `close` must be called in every case; without `save` the file is not whole.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)  # a PNG is compressed already
        self._workers = min(os.cpu_count() or 1, MAX_THREADS)
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="frames-zip")
        self._pending: deque[Future[bytes]] = deque()
        self._written = 0

    def look(self, frame: Frame) -> None:
        self._pending.append(self._pool.submit(_png, frame))
        if len(self._pending) > self._workers:
            self._write()

    def save(self) -> None:
        while self._pending:
            self._write()
        self._zip.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        with suppress(OSError):
            self._zip.close()

    def _write(self) -> None:
        # A ZipInfo of its own carries no time of day.
        entry = zipfile.ZipInfo(f"frame_{self._written:05d}.png")
        self._zip.writestr(entry, self._pending.popleft().result())
        self._written += 1


def _png(frame: Frame) -> bytes:
    written = io.BytesIO()
    Image.fromarray(frame).save(written, format="PNG", compress_level=PNG_LEVEL)
    return written.getvalue()
