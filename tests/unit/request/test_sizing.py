"""The size of a video, from every way to ask for one."""

from __future__ import annotations

import pytest

from tests.kits.request_kit import flat_problems, flat_video
from worker.request import Limits

PICTURE = {"reference_image_url": "https://example.com/a.png"}
CLIP = {"reference_video_url": "https://example.com/a.mp4"}


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({}, (832, 480)),
        ({"model": "5b"}, (1280, 704)),
        ({"resolution": "480p"}, (832, 480)),
        ({"resolution": "580p"}, (1024, 576)),
        ({"resolution": "720p"}, (1280, 720)),
        ({"resolution": "480p", "model": "5b"}, (832, 480)),
        ({"resolution": "720p", "model": "5b"}, (1280, 704)),
        ({"aspect_ratio": "auto"}, (832, 480)),
        ({"aspect_ratio": "16:9"}, (832, 480)),
        ({"aspect_ratio": "9:16"}, (480, 832)),
        ({"aspect_ratio": "9:16", "model": "5b"}, (704, 1280)),
        ({"aspect_ratio": "9:16", "resolution": "720p"}, (720, 1280)),
        ({"aspect_ratio": "1:1"}, (624, 624)),
        ({"aspect_ratio": "1:1", "resolution": "720p"}, (960, 960)),
        ({"aspect_ratio": "1:1", "resolution": "720p", "model": "5b"}, (960, 960)),
        ({"aspect_ratio": "9:16", "resolution": "720p", "model": "5b"}, (704, 1280)),
        ({"aspect_ratio": "3:2"}, (768, 512)),
        ({"aspect_ratio": "2:3"}, (512, 768)),
        ({"aspect_ratio": "4:3"}, (720, 544)),
        ({"aspect_ratio": "21:9", "resolution": "720p"}, (1456, 624)),
        ({"aspect_ratio": "9:21", "resolution": "720p"}, (624, 1456)),
        ({"width": 640}, (640, 480)),
        ({"height": 640}, (832, 640)),
        ({"width": 1920, "model": "5b"}, (1920, 480)),
        # A source is cropped where an aspect is named, and decides where none is.
        ({**PICTURE, "aspect_ratio": "1:1"}, (624, 624)),
        ({**CLIP, "aspect_ratio": "9:16", "resolution": "720p"}, (720, 1280)),
        ({**PICTURE, "width": 640, "height": 352}, (640, 352)),
        (PICTURE, (None, None)),
        (CLIP, (None, None)),
        ({**PICTURE, "aspect_ratio": "auto"}, (None, None)),
        ({**PICTURE, "resolution": "720p"}, (None, None)),
        ({**PICTURE, "height": 720}, (None, 720)),
        ({**CLIP, "width": 655}, (640, None)),
    ],
)
def test_the_size_that_is_asked_for(fields: dict[str, object], size: tuple[int | None, int | None]) -> None:
    video = flat_video(**fields)
    assert (video.width, video.height) == size


@pytest.mark.parametrize("aspect", ["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21"])
@pytest.mark.parametrize("model", ["a14b", "5b"])
@pytest.mark.parametrize("resolution", ["480p", "580p", "720p"])
def test_every_aspect_fills_the_area_in_multiples_of_the_stride(aspect: str, model: str, resolution: str) -> None:
    video = flat_video(aspect_ratio=aspect, model=model, resolution=resolution)
    assert video.width is not None
    assert video.height is not None
    stride = 32 if model == "5b" else 16
    across, down = map(int, aspect.split(":"))
    assert video.width % stride == video.height % stride == 0
    assert 0.9 * video.area < video.width * video.height <= video.area
    assert video.width / video.height == pytest.approx(across / down, rel=0.04)


@pytest.mark.parametrize(
    ("fields", "area"),
    [
        ({}, 832 * 480),
        ({"model": "5b"}, 1280 * 704),
        ({"resolution": "720p"}, 1280 * 720),
        ({"resolution": "580p", "model": "5b"}, 1024 * 576),
        ({"resolution": "720p", "model": "5b"}, 1280 * 720),
        ({"height": 720}, 832 * 480),
    ],
)
def test_the_area_that_a_source_fills(fields: dict[str, object], area: int) -> None:
    assert flat_video(**PICTURE, **fields).area == area


@pytest.mark.parametrize(
    ("most", "size"),
    [(832 * 480, (832, 480)), (832 * 480 - 1, (816, 464)), (600 * 400, (640, 368)), (256 * 256, (256, 256))],
)
def test_a_limit_below_the_default_lowers_it(most: int, size: tuple[int, int]) -> None:
    video = flat_video(Limits(max_pixels=most))
    assert (video.width, video.height) == size
    assert video.warnings == ()
    assert flat_video(Limits(max_pixels=most), **PICTURE).area <= most


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"resolution": "720p"}, "resolution", "720p is 921600 pixels; at most 901120 are allowed"),
        ({"resolution": "720p", **PICTURE}, "resolution", "720p is 921600 pixels; at most 901120 are allowed"),
        ({"width": 1280, "height": 720}, "width", "width x height is 921600; at most 901120 are allowed"),
    ],
)
def test_what_is_named_beyond_the_limit_is_refused(fields: dict[str, object], field: str, message: str) -> None:
    assert flat_problems(Limits(max_pixels=1280 * 704), **fields) == {field: message}
    assert flat_video(Limits(max_pixels=1280 * 720), **fields)


def test_a_resolution_never_goes_beyond_the_limit() -> None:
    # The 5B's own size of 720p fits, the area of 1280x720 does not.
    limits = Limits(max_pixels=1280 * 704)
    square = flat_video(limits, model="5b", resolution="720p", aspect_ratio="1:1")
    assert (square.width, square.height) == (928, 928)
    assert flat_video(limits, model="5b", resolution="720p", **PICTURE).area == 1280 * 704


def test_one_side_that_leaves_no_room_for_the_other_is_refused() -> None:
    small = Limits(max_pixels=256 * 512)
    for beside in ({}, PICTURE):
        assert flat_video(small, width=512, **beside).width == 512
        assert flat_problems(small, width=528, **beside)["width"].startswith("width x height is ")
        assert flat_problems(small, height=528, **beside)["height"].startswith("width x height is ")


@pytest.mark.parametrize("named", [{"resolution": "480p"}, {"aspect_ratio": "1:1"}, {"aspect_ratio": "auto"}])
@pytest.mark.parametrize("side", ["width", "height"])
def test_sides_and_names_exclude_each_other(named: dict[str, str], side: str) -> None:
    assert flat_problems(**named, **{side: 480}) == {
        next(iter(named)): "cannot stand beside height or width; send one or the other"
    }
