"""How well the clips of a video are joined: the step across a join, and how far the colours have drifted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from worker.media.color_match import to_linear

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

# Linear sRGB to CIE XYZ, of the white D65 that both have.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(axis=1)
_LINEAR = to_linear(np.arange(256) / 255)


class Measured:
    """Measures the frames of one clip as they pass by; `before` is the frame that is shown before them, if any."""

    def __init__(self, before: Frame | None) -> None:
        self._before = before
        self._steps: list[float] = []
        self._light = np.zeros(3)
        self._count = 0

    def passing(self, frames: Iterable[Frame]) -> Iterator[Frame]:
        """The frames, uint8 [H, W, 3], as they are."""
        previous = self._before
        for frame in frames:
            if previous is not None:
                self._steps.append(step(previous, frame))
            self._light += [_LINEAR[frame[..., channel]].mean() for channel in range(3)]
            self._count += 1
            previous = frame
            yield frame

    @property
    def seam(self) -> float | None:
        """The step from the frame before over the median step inside; None where nothing is before, or all stands."""
        inside = self._steps[self._before is not None :]
        median = float(np.median(inside)) if inside else 0.0
        return None if self._before is None or median == 0 else self._steps[0] / median

    @property
    def mean_lab(self) -> tuple[float, float, float]:
        """CIE L*a*b* of the mean colour."""
        xyz = _XYZ @ (self._light / max(1, self._count)) / _WHITE
        root = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
        return float(116 * root[1] - 16), float(500 * (root[0] - root[1])), float(200 * (root[1] - root[2]))


def step(one: Frame, other: Frame) -> float:
    """The mean absolute difference of two frames, 0 to 255."""
    return float(np.abs(one.astype(np.int16) - other).mean())


def color_drift(one: Sequence[float], other: Sequence[float]) -> float:
    """The distance of two colours in CIE L*a*b* (CIE76)."""
    return float(np.linalg.norm(np.subtract(one, other)))
