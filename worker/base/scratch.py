"""Temporary folders that a killed worker leaves behind are found and removed by the next one.

Each holds a mark whose lock lives as long as the process that made the folder, so that workers which share a disk never
remove a folder that is in use.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from worker.base.locks import taken

logger = logging.getLogger(__name__)

Purpose = Literal["job", "demo", "reference", "loras", "doctor"]

KEEP_S = 24 * 3600.0
_PREFIX = "videogen-"
_MARK = ".in-use"


class ScratchFolder:
    """A temporary folder of its own, in use until `close` or the end of the process. Raises OSError."""

    def __init__(self, purpose: Purpose, within: Path | None = None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-", dir=within))
        self._mark = os.open(self.path / _MARK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # On a file system without locks the folder is never swept.
        with suppress(OSError):
            taken(self._mark)

    def close(self) -> None:
        """Remove the folder; a second call does nothing."""
        if self._mark >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._mark)
            self._mark = -1


@contextmanager
def folder(purpose: Purpose, within: Path | None = None) -> Iterator[Path]:
    """A temporary folder that is removed at the end; `within` another place than that for temporary files."""
    made = ScratchFolder(purpose, within)
    try:
        yield made.path
    finally:
        made.close()


def sweep(*, now: Callable[[], float] = time.time) -> None:
    """Remove marked folders that nobody uses and that are older than a day. Raises nothing."""
    removed = 0
    with suppress(OSError):
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
            with suppress(OSError):
                if now() - path.stat().st_mtime > KEEP_S and _is_free(path / _MARK):
                    shutil.rmtree(path, ignore_errors=True)
                    removed += not path.exists()
    if removed:
        logger.info("removed %d temporary folder(s) of workers that were killed", removed)


def _is_free(mark: Path) -> bool:
    """Nobody holds the mark. Raises OSError where there is none: the folder is not one of ours."""
    handle = os.open(mark, os.O_RDWR | os.O_CLOEXEC)
    try:
        return taken(handle)
    finally:
        os.close(handle)
