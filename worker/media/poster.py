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
# The median of the absolute value of a normal variable; the sums of squares of the two masks.
_MEDIAN_OF_NORMAL = 0.6745
_LAPLACIAN_GAIN, _MASK_GAIN = 20.0, 36.0


class PosterPicker:
    """Finds the first sharp frame: the earliest that is nearly as sharp as the sharpest of the first second.

    `first`: the first frame, as it is. Keeps only frames that can still be chosen: each sharper than all before it,
    which are few.
    """

    def __init__(self, path: Path, *, first: bool = False) -> None:
        self._path = path
        self._left = 1 if first else POSTER_WINDOW_FRAMES
        self._first: Frame | None = None
        self._candidates: list[tuple[float, Frame]] = []

    def look(self, frame: Frame) -> None:
        if self._left == 0:
            return
        self._left -= 1
        if self._first is None:
            self._first = frame
        image = Image.fromarray(frame).convert("L")
        luma = np.asarray(image.reduce(max(1, image.width // _SHARPNESS_WIDTH)), dtype=np.float32)
        found = sharpness(luma)
        if luma.mean() < _NEAR_BLACK_LUMA or (self._candidates and found <= self._candidates[-1][0]):
            return
        wanted = POSTER_SHARPNESS_SHARE * found
        self._candidates = [kept for kept in self._candidates if kept[0] >= wanted]
        self._candidates.append((found, frame))

    def save(self) -> None:
        """Write the JPEG; a window that is all black gives its first frame. Raises OSError."""
        chosen = self._candidates[0][1] if self._candidates else self._first
        if chosen is None:
            raise EncodeFailed("no frame was generated to make a poster of")
        Image.fromarray(chosen).save(self._path, format="JPEG", quality=POSTER_QUALITY, optimize=True)

    def close(self) -> None:
        self._candidates.clear()


def sharpness(luma: NDArray[np.float32]) -> float:
    """How sharp a picture of luma 0 to 255, [height, width], is: 0 where it has no edges or is all grain.

    The variance of the Laplacian, less twice what grain adds to it: grain makes a picture less sharp, not sharper. The
    grain is that of Immerkaer's mask ("Fast noise variance estimation", 1996), which sees no straight edges; its median
    passes over what the mask does see of corners.
    """
    if min(luma.shape) < 3:
        return 0.0
    sides = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    corners = luma[:-2, :-2] + luma[:-2, 2:] + luma[2:, :-2] + luma[2:, 2:]
    centre = luma[1:-1, 1:-1]
    laplacian, mask = sides - 4 * centre, corners - 2 * sides + 4 * centre
    deviation = float(np.median(np.abs(mask))) / _MEDIAN_OF_NORMAL / _MASK_GAIN**0.5
    return float(max(0.0, laplacian.var() - 2 * _LAPLACIAN_GAIN * deviation**2))
