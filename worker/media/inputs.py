"""Reference images and videos: from what the request points to, to RGB pixels that a pipeline can use.

Whatever the caller sends becomes an image, a list of frames or a typed error that names the field. Downloads go
through `worker.net`; decoding runs in a sandbox (`decode_image.py`, `decode_video.py`).
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import unquote_to_bytes

import PIL
from PIL import Image, ImageOps

from worker.base import scratch
from worker.base.errors import InputFailed, InputInvalid
from worker.media import decode_image as image_decoder
from worker.media import decode_video, sandbox
from worker.net import Opener
from worker.net.opener import IMAGE_LIMITS, MEGABYTE, VIDEO_LIMITS
from worker.request import VideoRequest

MIN_SIDE = 256
MAX_SIDE = 1920
IMAGE_BOUNDS = sandbox.Bounds(
    memory_bytes=1_000_000_000, cpu_s=30, file_bytes=image_decoder.MAX_OUTPUT_BYTES, wall_s=60.0
)
MAX_ESCAPE = 3  # characters of a percent-encoded byte
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_REMEDY = "send a JPEG, PNG, WebP, HEIC, GIF, BMP, TIFF or AVIF file"
_REFUSALS = {
    "too_many_pixels": f"the image has more than {image_decoder.MAX_PIXELS // 10**6} megapixels "
    f"(JPEG {image_decoder.MAX_JPEG_PIXELS // 10**6}, HEIC {image_decoder.MAX_HEIF_PIXELS // 10**6}): "
    "send a smaller one",
    "too_much_memory": "the image needs too much memory to decode: send a smaller one, as JPEG or PNG",
    "unreadable": f"not an image that can be read: {_REMEDY}",
}


def load_image(
    source: str,
    *,
    opener: Opener,
    path: str,
    stop: threading.Event | None = None,
    seen: Callable[[bytes], None] | None = None,
) -> Image.Image:
    """The image behind an http(s) URL or in a `data:` URI: upright, RGB, at its full size, or half of it above
    `decode_image.MAX_PIXELS`.

    Of an animation it is the first frame; alpha is laid on white; depths above 8 bits are scaled down. `seen`
    is called with the bytes of the file. Raises InputBlocked, InputFailed, InputInvalid or Cancelled, and
    InvalidRequest for a source that is no URL.
    """
    if source[:5].lower() == "data:":
        encoded = _from_data_uri(source, path)
    else:
        encoded = opener.read(source, limits=IMAGE_LIMITS, path=path, stop=stop)
    image = decode_image(encoded, path=path, stop=stop)
    if seen is not None:
        seen(encoded)
    return image


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """`image` scaled with Lanczos until it covers `width` x `height`, and cropped to that around its centre."""
    return ImageOps.fit(image, (width, height), method=Image.Resampling.LANCZOS)


def cropped_share(source_size: tuple[int, int], width: int, height: int) -> float:
    """The share of a picture's pixels, 0 to 1, that `fit` crops away for a frame of `width` x `height`."""
    wide, high = source_size[0] * height, source_size[1] * width
    return abs(wide - high) / max(wide, high)


def size_following(
    source_size: tuple[int, int], request: VideoRequest, *, stride: int, max_pixels: int
) -> tuple[int, int]:
    """Width and height of the video of `request`, whose open sides follow a source of `source_size` (width, height).

    Raises ValueError where no size satisfies it.
    """
    return size_for(
        source_size,
        area=request.area,
        stride=stride,
        width=request.width,
        height=request.height,
        max_pixels=max_pixels,
        # On the demo model's small area an aspect of 21:9 has a side below the usual least.
        minimum=min(MIN_SIDE, math.isqrt(request.area * 9 // 21)),
    )


def size_for(
    source_size: tuple[int, int],
    *,
    area: int,
    stride: int,
    width: int | None = None,
    height: int | None = None,
    max_pixels: int = MAX_SIDE * MAX_SIDE,
    minimum: int = MIN_SIDE,
    maximum: int = MAX_SIDE,
) -> tuple[int, int]:
    """Width and height of a video with the aspect ratio of a source of `source_size` (width, height).

    Sides that are given stay; a missing one is a multiple of `stride` within `minimum` to `maximum`. Beside a given
    side it is the nearest that keeps the aspect ratio, with a product of at most `max_pixels`. Where neither is given
    they fill at most `area` too, rounded down as Wan's own image-to-video code does. An aspect ratio beyond the limits
    becomes the nearest that they allow. Raises ValueError where no size satisfies them all.
    """
    if width is not None and height is not None:
        return width, height
    lowest = math.ceil(minimum / stride) * stride
    highest = maximum // stride * stride
    pixels = min(area, max_pixels) if width is None and height is None else max_pixels
    if lowest > highest or lowest * (width or height or lowest) > pixels:
        given = "".join(f" and a {name} of {side}" for name, side in (("width", width), ("height", height)) if side)
        raise ValueError(f"no size of sides {minimum} to {maximum}{given} has at most {pixels} pixels")

    def beside(side: int, of_source: int, other_of_source: int) -> int:
        other = round(side * other_of_source / of_source / stride) * stride
        return _clamped(other, lowest, min(highest, pixels // side // stride * stride))

    source_width, source_height = source_size
    if height is not None:
        return beside(height, source_height, source_width), height
    if width is not None:
        return width, beside(width, source_width, source_height)
    # Integers all through: a float root of 832 * 832 may fall just below 832 and lose a whole stride.
    width = _clamped(math.isqrt(pixels * source_width // source_height), lowest, min(highest, pixels // lowest))
    height = _clamped(pixels // width, lowest, highest)
    return width // stride * stride, height // stride * stride


@contextmanager
def fetch_video(
    source: str,
    *,
    opener: Opener,
    path: str,
    stop: threading.Event | None = None,
    seen: Callable[[Path], None] | None = None,
) -> Iterator[decode_video.SourceVideo]:
    """The MP4 or WebM file behind an http(s) URL, whose size is known and whose frames can be decoded inside the block.

    `seen` is called with the file. Raises what `load_image` raises.
    """
    with scratch.folder("reference") as folder:
        file = folder / "source"
        opener.download(source, file, limits=VIDEO_LIMITS, path=path, stop=stop)
        video = decode_video.open_video(file, path=path, stop=stop)
        if seen is not None:
            seen(file)
        yield video


def _clamped(value: int, lowest: int, highest: int) -> int:
    return max(lowest, min(highest, value))


def _from_data_uri(source: str, path: str) -> bytes:
    """The bytes of a data URI (RFC 2397) of any media type, in base64 of either alphabet or percent-encoded."""
    head, comma, text = source[len("data:") :].partition(",")
    if not comma:
        raise InputInvalid("a data URI must have a comma before its data, such as data:image/png;base64,", path=path)
    if len(text) > MAX_ESCAPE * IMAGE_LIMITS.max_bytes:
        raise _too_large(path)
    encoded = unquote_to_bytes(text)
    if head.lower().rstrip().endswith(";base64"):
        letters = b"".join(encoded.split()).translate(_URL_SAFE).rstrip(b"=")
        try:
            encoded = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
        except (binascii.Error, ValueError) as failure:
            raise InputInvalid("the data URI does not hold valid base64", path=path) from failure
    if len(encoded) > IMAGE_LIMITS.max_bytes:
        raise _too_large(path)
    return encoded


def _too_large(path: str) -> InputFailed:
    return InputFailed(f"the image is larger than the {IMAGE_LIMITS.max_bytes // MEGABYTE} MB allowed here", path=path)


def decode_image(
    encoded: bytes,
    *,
    path: str,
    stop: threading.Event | None = None,
    bounds: sandbox.Bounds = IMAGE_BOUNDS,
    program: Path = Path(image_decoder.__file__),
) -> Image.Image:
    """`encoded` as upright RGB, decoded by `program` in a sandbox. `path` names the field in errors.

    Files, not pipes: neither side can then fill the memory or block the other. Raises InputInvalid, Cancelled.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as result:
        source.write(encoded)
        source.seek(0)
        command = [sys.executable, "-I", "-S", str(program), str(Path(PIL.__file__).parent.parent)]
        # Arenas of more threads would use up the address space allowed.
        environment = {"MALLOC_ARENA_MAX": "1"}
        with sandbox.running(command, bounds, stdin=source, stdout=result, environment=environment, stop=stop) as child:
            try:
                child.wait()
            except sandbox.TooSlow:
                message = "the image takes too long to decode: send a smaller one, as JPEG or PNG"
                raise InputInvalid(message, path=path) from None
        result.seek(0)
        return _image_in(result, path)


def _image_in(result: IO[bytes], path: str) -> Image.Image:
    """The image that the child wrote. Only lengths are trusted: a decoder that was taken over may write anything."""
    head = result.read(image_decoder.HEADER.size)
    if len(head) == image_decoder.HEADER.size:
        magic, width, height = image_decoder.HEADER.unpack(head)
        if magic == image_decoder.REFUSED:
            raise InputInvalid(
                _REFUSALS.get(result.read(64).decode("ascii", "replace"), _REFUSALS["unreadable"]), path=path
            )
        if magic == image_decoder.DECODED and 0 < width * height <= image_decoder.MAX_PIXELS:
            pixels = result.read(width * height * 3 + 1)
            if len(pixels) == width * height * 3:
                return Image.frombytes("RGB", (width, height), pixels)
    raise InputInvalid(_REFUSALS["unreadable"], path=path)
