"""Frames in a file without loss, for what is encoded later: each as its difference to the one before, deflated."""

from __future__ import annotations

import gzip
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

_LEVEL = 1


def write(frames: Iterable[Frame], path: Path) -> int:
    """Write frames, uint8 [H, W, 3] and all alike, to `path`; returns how many. Raises OSError."""
    count = 0
    previous: Frame | None = None
    with gzip.open(path, "wb", compresslevel=_LEVEL) as file:
        for frame in frames:
            file.write((frame if previous is None else frame - previous).data)
            previous, count = frame, count + 1
    return count


def read(path: Path, width: int, height: int) -> Generator[Frame]:
    """The frames of a file that `write` made, one by one. Raises OSError and EOFError for a damaged one."""
    size = width * height * 3
    frame: Frame = np.zeros((height, width, 3), np.uint8)
    with gzip.open(path, "rb") as file:
        while block := file.read(size):
            frame = frame + np.frombuffer(block, np.uint8).reshape(height, width, 3)
            yield frame
