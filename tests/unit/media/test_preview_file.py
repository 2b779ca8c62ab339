"""Previews as files: their size, their frames, and the bytes that they may have."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from worker.base.errors import EncodeFailed
from worker.media.preview_file import MAX_BYTES, animated, strip


def frames(count: int, width: int = 20, height: int = 12, *, noise: bool = False) -> np.ndarray:
    if noise:
        return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return np.stack([np.full((height, width, 3), 40 * number, np.uint8) for number in range(count)])


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize(
    ("count", "shown"), [(1, [0]), (2, [0, 40]), (5, [0, 40, 80, 120, 160]), (6, [0, 40, 80, 160, 200])]
)
def test_a_strip_has_up_to_five_frames_side_by_side(count: int, shown: list[int]) -> None:
    picture = opened(strip(frames(count)))
    assert picture.size == (240 * len(shown), 144)
    middles = [picture.convert("L").getpixel((240 * place + 120, 72)) for place in range(len(shown))]
    assert middles == pytest.approx(shown, abs=3)


def test_an_animation_has_every_frame_at_the_rate_of_the_latents() -> None:
    picture = opened(animated(frames(6), fps=4))
    assert (picture.n_frames, picture.size) == (6, (240, 144))
    picture.seek(5)
    picture.load()
    assert picture.info["duration"] == 250


def test_a_large_frame_stays_as_it_is() -> None:
    assert opened(strip(frames(1, width=300, height=200))).size == (300, 200)


def test_quality_goes_down_until_the_bytes_fit_and_not_below() -> None:
    noisy = frames(21, 104, 60, noise=True)
    content = strip(noisy)
    assert len(content) <= MAX_BYTES
    smaller = strip(noisy, len(content) - 1)
    assert len(smaller) < len(content)
    with pytest.raises(EncodeFailed, match="does not fit into 100 bytes"):
        strip(noisy, 100)
