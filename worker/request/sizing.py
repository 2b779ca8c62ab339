"""The size of a video: from its sides, from `resolution` and `aspect_ratio`, or left to its picture or video."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from worker.request.catalogue import ModelSpec
from worker.request.payload import MIN_SIDE, Limits, VideoInput
from worker.request.problems import Problems

# Width and height of the widest form of each.
RESOLUTIONS = {"480p": (832, 480), "580p": (1024, 576), "720p": (1280, 720)}


@dataclass(frozen=True, slots=True)
class Size:
    """In pixels. A side that is None follows the picture or video, whose frame then fills `area` at most."""

    width: int | None
    height: int | None
    area: int


def size_of(video: VideoInput, spec: ModelSpec, limits: Limits, problems: Problems) -> Size:
    """The size that `video` asks for; what cannot be is refused."""
    for field in ("resolution", "aspect_ratio"):
        if getattr(video, field) is not None and not (video.width is None and video.height is None):
            problems.refuse(field, "cannot stand beside height or width; send one or the other")
    width, height = _widest(video, spec, limits, problems)
    area = width * height
    if video.resolution is not None:
        area = min(math.prod(RESOLUTIONS[video.resolution]), limits.max_pixels)
    has_source = video.reference_image_url is not None or video.reference_video_url is not None
    followed = area if video.resolution is not None else min(spec.defaults.source_area, limits.max_pixels)
    if video.width is not None or video.height is not None:
        return Size(*_sides(video, spec, limits, has_source, problems), followed)
    aspect = video.aspect_ratio or "auto"
    if aspect == "auto":
        return Size(None, None, followed) if has_source else Size(width, height, area)
    across, down = map(int, aspect.split(":"))
    if {across, down} == {16, 9} and math.isclose(width / height, 16 / 9, rel_tol=0.05):
        return Size(width, height, area) if across > down else Size(height, width, area)
    return Size(*_largest(area, across / down, spec.size_stride), area)


def _widest(video: VideoInput, spec: ModelSpec, limits: Limits, problems: Problems) -> tuple[int, int]:
    """Width and height of 16:9 at the resolution that is asked for, or the model's own size."""
    stride = spec.size_stride
    if video.resolution is not None:
        width, height = (side // stride * stride for side in RESOLUTIONS[video.resolution])
        if width * height > limits.max_pixels:
            problems.refuse(
                "resolution", f"{video.resolution} is {width * height} pixels; at most {limits.max_pixels} are allowed"
            )
        return width, height
    width, height = spec.defaults.width, spec.defaults.height
    if width * height > limits.max_pixels:
        width, height = _largest(limits.max_pixels, width / height, stride)
        height = max(height, MIN_SIDE)
        width = min(width, limits.max_pixels // height // stride * stride)
    return width, height


def _sides(
    video: VideoInput, spec: ModelSpec, limits: Limits, has_source: bool, problems: Problems
) -> tuple[int | None, int | None]:
    """Width and height as given; the one that is not given follows the source, else is the model's own, or less."""
    stride = spec.size_stride
    sides: list[int | None] = []
    for field, default, other in (
        ("width", spec.defaults.width, video.height),
        ("height", spec.defaults.height, video.width),
    ):
        given: int | None = getattr(video, field)
        if given is not None:
            sides.append(given // stride * stride)
            problems.lowered(field, given, given // stride * stride, f"a multiple of {stride}")
        elif has_source:
            sides.append(None)
        else:
            most = limits.max_pixels // (other // stride * stride if other else default) // stride * stride
            sides.append(max(MIN_SIDE, min(default, most)))
    # The least that a side may be where the source decides.
    pixels = math.prod(side or MIN_SIDE for side in sides)
    if pixels > limits.max_pixels and problems.none_in("width", "height"):
        problems.refuse(
            "height" if video.width is None else "width",
            f"width x height is {pixels}; at most {limits.max_pixels} are allowed",
        )
    return sides[0], sides[1]


def _largest(area: int, aspect: float, stride: int) -> tuple[int, int]:
    """Of the multiples of `stride` around the sides of `aspect` at `area` pixels, the pair that is nearest to it."""
    around = [math.sqrt(area * aspect) // stride, math.sqrt(area / aspect) // stride]
    widths, heights = ([int(count) * stride, (int(count) + 1) * stride] for count in around)
    pairs = itertools.product(widths, heights)
    return min(
        (pair for pair in pairs if pair[0] * pair[1] <= area),
        key=lambda pair: (abs(math.log(pair[0] / pair[1] / aspect)), -pair[0]),
    )
