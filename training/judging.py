"""What a clip shows, read from its pixels alone: the object's colour, shape and motion, and the camera's move.

No network judges another. The object is what is vivid (or, for white, bright and grey): every ground is duller than
every colour. Its motion is the track of the centroid of its pixels, its shape the symmetry of its silhouette. The
camera's move is the shift and the scaling of the ground from frame to frame.
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
# How much of a silhouette repeats four or five times around its middle: 0.43 for a square, 0.65 for a star.
_LEAST_SYMMETRY = 0.2
# A camera that pans moves the ground by 0.2 of the frame's shorter side, one that zooms scales it by half.
_LEAST_PAN, _LEAST_ZOOM = 0.09, 0.2
_COARSE = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """Names of `training.scenes`; None where nothing clear is seen."""

    colour: str | None
    motion: str | None
    shape: str | None = None


def judge(frames: np.ndarray, *, far: float = _FAR) -> Verdict:
    """The verdict on frames uint8 [F, H, W, 3]. far: the least way that is a motion, in units of the shorter side."""
    masks = _masks(frames.astype(np.float32) / 255)
    colour = max(masks, key=lambda name: int(masks[name].sum()))
    if masks[colour].mean() < _LEAST_SHARE:
        return Verdict(None, None)
    return Verdict(colour, _motion(_track(masks[colour]), far), _shape(masks[colour]))


def place(frames: np.ndarray) -> tuple[float, float] | None:
    """Where the object is on average over frames uint8 [F, H, W, 3]: right and down, in units of the shorter side."""
    masks = _masks(frames.astype(np.float32) / 255)
    mask = masks[max(masks, key=lambda name: int(masks[name].sum()))]
    if mask.mean() < _LEAST_SHARE:
        return None
    right, down = _track(mask).mean(0)
    return float(right), float(down)


def camera(frames: np.ndarray) -> str | None:
    """The camera's move over frames uint8 [F, H, W, 3]: pan_left and so on, zoom_in, zoom_out or static.

    The ground needs edges in both directions and no motion of its own: a checkerboard. A move of the camera that is
    neither a pan nor a zoom, or too small, is None.
    """
    pixels = frames.astype(np.float32) / 255
    masks = _masks(pixels)
    thing = masks[max(masks, key=lambda name: int(masks[name].sum()))]
    right, down, zoom = _flow(pixels.mean(-1), thing)
    if max(abs(right), abs(down)) < _LEAST_PAN and abs(zoom) > _LEAST_ZOOM:
        return "zoom_in" if zoom > 0 else "zoom_out"
    if abs(zoom) > _LEAST_ZOOM:
        return None
    if abs(right) > _LEAST_PAN and abs(right) > 2 * abs(down):
        return "pan_left" if right > 0 else "pan_right"
    if abs(down) > _LEAST_PAN and abs(down) > 2 * abs(right):
        return "pan_up" if down > 0 else "pan_down"
    return "static" if max(abs(right), abs(down)) < _LEAST_PAN / 2 else None


def _flow(grey: np.ndarray, thing: np.ndarray) -> tuple[float, float, float]:
    """How far all but `thing` moves right and down, in units of the shorter side, and the logarithm of its scaling.

    The least-squares step of Lucas and Kanade (1981) from each frame of `grey` [F, H, W] to the next, with one shift
    and one scaling for the whole frame.
    """
    coarse = _pooled(grey)
    away = _pooled(thing.astype(np.float32)) == 0
    rows, columns = (np.arange(length, dtype=np.float32) - (length - 1) / 2 for length in coarse.shape[1:])
    total = np.zeros(3)
    for number, (before, after) in enumerate(pairwise(coarse)):
        kept = away[number] & away[number + 1]
        down, right = (part[kept] for part in np.gradient((before + after) / 2))
        y, x = (part[kept] for part in np.meshgrid(rows, columns, indexing="ij"))
        total += np.linalg.lstsq(np.stack([right, down, right * x + down * y], 1), (before - after)[kept], rcond=None)[
            0
        ]
    side = min(coarse.shape[1:])
    return float(total[0]) / side, float(total[1]) / side, float(total[2])


def _pooled(pictures: np.ndarray) -> np.ndarray:
    """Means of blocks of 4 x 4 pixels."""
    count, height, width = pictures.shape
    return pictures.reshape(count, height // _COARSE, _COARSE, width // _COARSE, _COARSE).mean((2, 4))


def _shape(mask: np.ndarray) -> str:
    """A silhouette that repeats five times around its middle is a star, four times a box; a ball does neither."""
    sizes = mask.sum((1, 2))
    found = [_symmetry(silhouette) for silhouette in mask[sizes > 0.5 * np.median(sizes[sizes > 0])]]
    four, five = np.median(found, 0)
    if max(four, five) < _LEAST_SYMMETRY:
        return "ball"
    return "star" if five > four else "box"


def _symmetry(silhouette: np.ndarray) -> tuple[float, float]:
    """Moments of order 4 around the middle of bool [H, W], with four and with five turns, over that with none."""
    rows, columns = np.nonzero(silhouette)
    place = (columns - np.median(columns)) + 1j * (rows - np.median(rows))
    # Single pixels far off would count for more than the rest.
    place = place[np.abs(place) <= 2 * np.sqrt((np.abs(place) ** 2).mean())]
    place = place - place.mean()
    weight = np.abs(place) ** 4
    whole = max(float(weight.mean()), 1e-6)
    four, five = (abs((weight * np.exp(1j * turns * np.angle(place))).mean()) / whole for turns in (4, 5))
    return float(four), float(five)


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


def _motion(track: np.ndarray, far: float) -> str | None:
    if len(track) < 4:
        return None
    net = track[-1] - track[0]
    length = sum(float(np.hypot(*(after - before))) for before, after in pairwise(track))
    straight = float(np.hypot(*net)) / max(length, 1e-6)
    across, along = np.ptp(track, axis=0)
    main = int(np.argmax(np.abs(net)))
    if straight > _STRAIGHT and abs(net[main]) > far and abs(net[main]) > 1.5 * abs(net[1 - main]):
        return (("left", "right"), ("up", "down"))[main][int(net[main] > 0)]
    if straight < _WINDING and along > far:
        return "round" if across > far else "bounce"
    return None
