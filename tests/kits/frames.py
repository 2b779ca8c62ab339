"""Frames for encoders, what encodes them, and programs that stand for ffmpeg."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from worker.media import VideoFile
from worker.media.encode import encode

Frame = NDArray[np.uint8]


def gradients(count: int, *, width: int = 64, height: int = 48) -> Iterator[Frame]:
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(count):
        yield np.stack([columns * 3 + index, rows * 4, columns + rows], -1).astype(np.uint8)


def moving(count: int) -> Iterator[Frame]:
    """A textured square over a gradient of 160 x 96 pixels, three pixels a frame."""
    square = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    rows, columns = np.mgrid[0:96, 0:160]
    for index in range(count):
        frame = np.stack([columns, rows * 2, 255 - columns], -1).astype(np.uint8)
        frame[20:52, 3 * index : 3 * index + 32] = square
        yield frame


def encoded(frames: Any, path: Path, **options: Any) -> VideoFile:
    """Five frames of 64 x 48 pixels at 16 fps, where `options` say nothing else."""
    return encode(
        frames, path=path, **{"width": 64, "height": 48, "num_frames": 5, "fps": 16, "poster": None, **options}
    )


def script(folder: Path, body: str) -> Path:
    """A program to run as ffmpeg; `$out` is the file that it was told to write."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\nfor last in "$@"; do out="${{last#file:}}"; done\n{body}\n')
    program.chmod(0o755)
    return program


class Alive:
    """Hands frames out and counts how many of them are in memory at once."""

    def __init__(self, make: Callable[[int], Frame]) -> None:
        self._make = make
        self._alive: weakref.WeakValueDictionary[int, Frame] = weakref.WeakValueDictionary()
        self.most = 0

    def frames(self, count: int) -> Iterator[Frame]:
        for index in range(count):
            frame = self._make(index)
            self._alive[index] = frame
            self.most = max(self.most, len(self._alive))
            yield frame
            del frame
