"""Pictures fitted to a frame: crops, scaling, and the size that a video has where none is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.kits.pictures import GREEN, RED, WHITE, near
from worker.media import inputs


def test_fit_covers_and_crops_around_the_centre() -> None:
    strip = Image.new("RGB", (300, 100), WHITE)
    strip.paste(RED, (0, 0, 100, 100))
    strip.paste(GREEN, (100, 0, 200, 100))
    wide = inputs.fit(strip, 64, 64)
    assert wide.size == (64, 64)
    assert all(near(wide, at, GREEN) for at in ((4, 4), (60, 4), (4, 60), (60, 60)))
    tall = inputs.fit(strip.transpose(Image.Transpose.TRANSPOSE), 64, 64)
    assert all(near(tall, at, GREEN) for at in ((4, 4), (60, 4), (4, 60), (60, 60)))


def test_fit_keeps_the_aspect_ratio() -> None:
    """A circle stays one, to a pixel, when a square image becomes a wide frame."""
    rows, columns = np.mgrid[-200:200, -200:200]
    disc = Image.fromarray(np.where(rows**2 + columns**2 < 50**2, 255, 0).astype(np.uint8)).convert("RGB")
    pixels = np.asarray(inputs.fit(disc, 832, 480))[..., 0] > 127
    assert abs(int(pixels.any(axis=0).sum()) - int(pixels.any(axis=1).sum())) <= 1


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (31, 17)])
def test_fit_takes_any_size(size: tuple[int, int]) -> None:
    assert inputs.fit(Image.new("RGB", size), 832, 480).size == (832, 480)


AREA = 832 * 480


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ((832, 480), (832, 480)),
        ((480, 832), (480, 832)),
        ((1664, 960), (832, 480)),
        ((1920, 1080), (832, 464)),
        ((1080, 1920), (464, 832)),
        ((1000, 1000), (624, 624)),
        ((10_000, 100), (1552, 256)),
        ((1, 33_000_000), (256, 1552)),
        ((1, 1), (624, 624)),
    ],
)
def test_size_for_keeps_the_aspect_ratio_within_the_area(
    image_size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert inputs.size_for(image_size, area=AREA, stride=16) == expected


@pytest.mark.parametrize("stride", [16, 32])
@pytest.mark.parametrize("area", [256 * 256, AREA, 1280 * 720])
def test_size_for_obeys_every_limit_for_every_aspect(stride: int, area: int) -> None:
    for width in range(1, 4000, 37):
        for height in (1, 7, 100, 999, 4000):
            sides = inputs.size_for((width, height), area=area, stride=stride)
            assert all(256 <= side <= 1920 and side % stride == 0 for side in sides), (width, height, sides)
            assert sides[0] * sides[1] <= area


def test_size_for_without_a_solution_is_an_error() -> None:
    assert inputs.size_for((5, 4), area=256 * 256, stride=16) == (256, 256)
    with pytest.raises(ValueError, match="at most 65535 pixels"):
        inputs.size_for((5, 4), area=256 * 256 - 1, stride=16)


@pytest.mark.parametrize(
    ("source_size", "given", "expected"),
    [
        ((256, 512), {"height": 512}, (256, 512)),
        ((256, 512), {"width": 512}, (512, 1024)),
        ((1920, 1080), {"height": 720}, (1280, 720)),
        ((1920, 1080), {"width": 1280}, (1280, 720)),
        ((1920, 1080), {"height": 480}, (848, 480)),
        ((2000, 1000), {"height": 720}, (1280, 720)),
        ((100, 1000), {"height": 1024}, (256, 1024)),
        ((1000, 100), {"height": 256}, (1920, 256)),
        ((1000, 100), {"width": 640, "height": 480}, (640, 480)),
    ],
)
def test_a_side_that_is_not_given_follows_the_source(
    source_size: tuple[int, int], given: dict[str, int], expected: tuple[int, int]
) -> None:
    """The nearest multiple of the stride, within the sides and the pixels that are allowed."""
    assert inputs.size_for(source_size, area=AREA, stride=16, max_pixels=1280 * 720, **given) == expected


def test_a_side_that_leaves_no_room_for_the_other_is_an_error() -> None:
    assert inputs.size_for((5, 4), area=AREA, stride=16, width=512, max_pixels=512 * 256) == (512, 256)
    with pytest.raises(ValueError, match="width of 512 has at most 131071 pixels"):
        inputs.size_for((5, 4), area=AREA, stride=16, width=512, max_pixels=512 * 256 - 1)
    assert inputs.size_for((1, 1), area=AREA, stride=16, max_pixels=256 * 256) == (256, 256)


@pytest.mark.parametrize(
    ("source_size", "width", "height", "share"),
    [
        ((832, 480), 832, 480, 0.0),
        ((1664, 960), 832, 480, 0.0),
        ((100, 100), 832, 416, 0.5),
        ((300, 100), 64, 64, 2 / 3),
        ((100, 300), 64, 64, 2 / 3),
        ((1, 1000), 1920, 256, 1 - 256 / 1920 / 1000),
    ],
)
def test_the_share_that_is_cropped(source_size: tuple[int, int], width: int, height: int, share: float) -> None:
    assert inputs.cropped_share(source_size, width, height) == pytest.approx(share)


def test_a_picture_is_scaled_by_lanczos() -> None:
    fine = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 64)))  # columns of one pixel
    grey = np.asarray(inputs.fit(fine, 40, 20))[:, 4:-4]
    assert np.abs(grey.astype(int) - 128).max() < 40, "the nearest neighbour leaves them black and white"
    step = Image.fromarray(np.repeat(np.array([[64, 192]], np.uint8), 16, axis=0).repeat(8, axis=1))
    larger = np.asarray(inputs.fit(step, 64, 64))
    assert larger.min() < 60, "a filter without Lanczos' lobes stays between the two"
    assert larger.max() > 196
