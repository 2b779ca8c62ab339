"""The poster beside a video: a JPEG of the first sharp frame, chosen while the frames pass by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from worker.base.errors import EncodeFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

POSTER_WINDOW_FRAMES = 16  # the first second at Wan's own 16 frames a second
POSTER_SHARPNESS_SHARE = 0.8
POSTER_QUALITY = 90
_NEAR_BLACK_LUMA = 16.0
_SHARPNESS_WIDTH = 320


class PosterPicker:
    """Finds the first sharp frame: the earliest that is nearly as sharp as the sharpest of the first second.

    Keeps only frames that can still be chosen: each sharper than all before it, which are few.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._first: Frame | None = None
        self._candidates: list[tuple[float, Frame]] = []

    def look(self, frame: Frame) -> None:
        if self._seen == POSTER_WINDOW_FRAMES:
            return
        self._seen += 1
        if self._first is None:
            self._first = frame
        image = Image.fromarray(frame).convert("L")
        luma = np.asarray(image.reduce(max(1, image.width // _SHARPNESS_WIDTH)), dtype=np.float32)
        sharpness = _sharpness(luma)
        if luma.mean() < _NEAR_BLACK_LUMA or (self._candidates and sharpness <= self._candidates[-1][0]):
            return
        wanted = POSTER_SHARPNESS_SHARE * sharpness
        self._candidates = [kept for kept in self._candidates if kept[0] >= wanted]
        self._candidates.append((sharpness, frame))

    def save(self, path: Path) -> None:
        """Write the JPEG; a window that is all black gives its first frame."""
        chosen = self._candidates[0][1] if self._candidates else self._first
        if chosen is None:
            raise EncodeFailed("no frame was generated to make a poster of")
        Image.fromarray(chosen).save(path, format="JPEG", quality=POSTER_QUALITY, optimize=True)


def _sharpness(luma: NDArray[np.float32]) -> float:
    """The variance of the Laplacian; 0 for an image too small to have one."""
    if min(luma.shape) < 3:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return float((around - 4 * luma[1:-1, 1:-1]).var())
