"""A preview as a file: a WebP of small RGB frames, side by side or one after the other."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from worker.base.errors import EncodeFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_BYTES = 64_000
STRIP_FRAMES = 5
# A frame is enlarged by a whole number to this side at most: 104 x 60 latents of a video of 832 x 480 become 208 x 120.
_LONGER_SIDE = 256
_QUALITIES = (80, 60, 40, 20, 5)


def strip(frames: NDArray[np.uint8], most_bytes: int = MAX_BYTES) -> bytes:
    """Five of `frames` [T, h, w, 3] at even distances, or all of them if there are fewer, side by side."""
    shown = np.linspace(0, len(frames) - 1, min(STRIP_FRAMES, len(frames))).round().astype(int)
    pictures = _pictures(frames[shown])
    width, height = pictures[0].size
    canvas = Image.new("RGB", (width * len(pictures), height))
    for place, picture in enumerate(pictures):
        canvas.paste(picture, (place * width, 0))
    return _encoded([canvas], 0, most_bytes)


def animated(frames: NDArray[np.uint8], fps: float, most_bytes: int = MAX_BYTES) -> bytes:
    """`frames` [T, h, w, 3] one after the other, `fps` of them a second, over and over."""
    return _encoded(_pictures(frames), round(1000 / fps), most_bytes)


def _pictures(frames: NDArray[np.uint8]) -> list[Image.Image]:
    height, width = frames.shape[1:3]
    scale = max(1, _LONGER_SIDE // max(width, height))
    size = (width * scale, height * scale)
    return [Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC) for frame in frames]


def _encoded(pictures: Sequence[Image.Image], milliseconds: int, most_bytes: int) -> bytes:
    """At the best quality that fits; raises EncodeFailed where none does."""
    first, *rest = pictures
    for quality in _QUALITIES:
        file = io.BytesIO()
        if rest:
            first.save(file, "WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0, quality=quality)
        else:
            first.save(file, "WEBP", quality=quality)
        if file.tell() <= most_bytes:
            return file.getvalue()
    raise EncodeFailed(f"the preview does not fit into {most_bytes} bytes")
