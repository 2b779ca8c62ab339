"""What a clip shows, told from its pixels alone: the object's colour and the way it moves. No network judges another.

The object is what is vivid (or, for white, bright and grey): every ground is duller than every colour. Its motion is
the track of the centroid of its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

# Upper ends of the hues in degrees, in order; red closes the circle. Light shifts a hue by up to 14 degrees.
_HUES = (("red", 12), ("orange", 39), ("yellow", 75), ("green", 170), ("blue", 249), ("purple", 300), ("pink", 349))
_LEAST_CHROMA = 0.38
_WHITE_LEAST, _WHITE_CHROMA = 0.66, 0.34
# Of a frame's pixels: an object covers 5 to 8%, a far star 0.02%.
_LEAST_SHARE = 0.006
_FAR = 0.2
_STRAIGHT, _WINDING = 0.75, 0.6


@dataclass(frozen=True, slots=True)
class Verdict:
    """`colour` and `motion` are names of `training.scenes`, None where nothing clear is seen."""

    colour: str | None
    motion: str | None


def judge(frames: np.ndarray) -> Verdict:
    """The verdict on frames uint8 [F, H, W, 3]."""
    masks = _masks(frames.astype(np.float32) / 255)
    colour = max(masks, key=lambda name: int(masks[name].sum()))
    if masks[colour].mean() < _LEAST_SHARE:
        return Verdict(None, None)
    return Verdict(colour, _motion(_track(masks[colour])))


def _masks(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """For each colour, which pixels [F, H, W] show it."""
    high, low = pixels.max(-1), pixels.min(-1)
    chroma = high - low
    hue = _hue(pixels, high, np.maximum(chroma, 1e-6))
    vivid = chroma > _LEAST_CHROMA
    found: dict[str, np.ndarray] = {}
    before = -1.0
    for name, end in _HUES:
        found[name] = vivid & (hue > before) & (hue <= end)
        before = end
    found["red"] |= vivid & (hue > before)
    found["white"] = (low > _WHITE_LEAST) & (chroma < _WHITE_CHROMA)
    return found


def _hue(pixels: np.ndarray, high: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    sector = np.where(
        high == red,
        ((green - blue) / chroma) % 6,
        np.where(high == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return 60 * sector


def _track(mask: np.ndarray) -> np.ndarray:
    """Centroids [n, 2], right and down in units of the shorter side, of the frames that show enough of the object."""
    _, height, width = mask.shape
    sizes = mask.sum((1, 2))
    seen = sizes > 0.25 * np.median(sizes[sizes > 0])
    shown, size = mask[seen], sizes[seen]
    right = (shown.sum(1) * np.arange(width)).sum(1) / size
    down = (shown.sum(2) * np.arange(height)).sum(1) / size
    return np.stack([right, down], 1) / min(height, width)


def _motion(track: np.ndarray) -> str | None:
    if len(track) < 4:
        return None
    net = track[-1] - track[0]
    length = sum(float(np.hypot(*(after - before))) for before, after in pairwise(track))
    straight = float(np.hypot(*net)) / max(length, 1e-6)
    across, along = np.ptp(track, axis=0)
    main = int(np.argmax(np.abs(net)))
    if straight > _STRAIGHT and abs(net[main]) > _FAR and abs(net[main]) > 1.5 * abs(net[1 - main]):
        return (("left", "right"), ("up", "down"))[main][int(net[main] > 0)]
    if straight < _WINDING and along > _FAR:
        return "round" if across > _FAR else "bounce"
    return None
