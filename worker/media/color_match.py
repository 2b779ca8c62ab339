"""The colours of a clip held to those of the frames that it continues.

Where a clip begins with frames that are there already, the model draws these again, a little lighter or more saturated
each time. A gain and an offset for each channel, in linear light and constant over the clip, take that back. A model
that draws these wrongly and all that follows rightly is left alone (decision 0031).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

# What drifts from clip to clip is a few percent. More than this is another picture, not a drift.
GAIN_BOUNDS = (0.8, 1.25)
OFFSET_BOUNDS = (-0.05, 0.05)
# How many frames behind the first ones are looked at: those of one latent frame.
LOOKS_AT = 4
# A channel that is flat says nothing of its gain.
_LEAST_STD = 0.01


def to_linear(levels: NDArray[np.floating]) -> NDArray[np.floating]:
    """sRGB, 0 to 1, in linear light."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def from_linear(light: NDArray[np.floating]) -> NDArray[np.floating]:
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


_LINEAR = to_linear(np.arange(256) / 255)


def matching(drawn: Sequence[Frame], shown: Sequence[Frame], behind: Sequence[Frame]) -> Callable[[Frame], Frame]:
    """The function that gives the frames of a clip, uint8 [H, W, 3], the colours of what it continues.

    `drawn` are the clip's own first frames, `shown` those that it was to draw again: as many. Mean and spread of each
    channel become equal, as far as the bounds allow. Nothing is changed where that would take the mean colour of the
    frames `behind` those further from the mean colour of `shown` than it is.
    """
    table = np.empty((3, 256), np.uint8)
    wanted = np.array([_moments(shown, channel) for channel in range(3)])
    for channel, (wanted_mean, wanted_std) in enumerate(wanted):
        mean, std = _moments(drawn, channel)
        gain = float(np.clip(wanted_std / std, *GAIN_BOUNDS)) if min(std, wanted_std) > _LEAST_STD else 1.0
        offset = float(np.clip(wanted_mean - gain * mean, *OFFSET_BOUNDS))
        table[channel] = np.rint(from_linear(gain * _LINEAR + offset) * 255).astype(np.uint8)

    def matched(frame: Frame) -> Frame:
        return np.stack([table[channel][frame[..., channel]] for channel in range(3)], axis=-1)

    def distance(frames: Sequence[Frame]) -> float:
        means = [_moments(frames, channel)[0] for channel in range(3)]
        return float(np.linalg.norm(means - wanted[:, 0]))

    if behind and distance([matched(frame) for frame in behind]) > distance(behind):
        return lambda frame: frame
    return matched


def _moments(frames: Sequence[Frame], channel: int) -> tuple[float, float]:
    light = np.stack([_LINEAR[frame[..., channel]] for frame in frames])
    return float(light.mean()), float(light.std())
