"""Decodes one untrusted image to RGB; runs as a process of its own, so that a crafted file can only kill this process.

    python -I -S decode_image.py SITE_PACKAGES < encoded > decoded

Input: the encoded file. Output: `HEADER` (magic, width, height) and the rows of RGB bytes, or `HEADER` with
`REFUSED` as magic and a word of `REFUSALS` behind it. A missing or short output means that the process died.

`worker.media.inputs` runs it in a sandbox. It costs about 0.1 s an image (measured), because it imports Pillow
alone, and pi-heif for HEIC: this file imports nothing of the worker and is run by its path.
"""

from __future__ import annotations

import importlib
import io
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from PIL.Image import Image as Pixels
    from PIL.Image import Transpose

MAX_PIXELS = 33_000_000
# What phones write is larger, and is halved while it is decoded.
MAX_JPEG_PIXELS = 110_000_000
MAX_HEIF_PIXELS = 51_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
HEADER = struct.Struct("<4sII")
DECODED = b"RGB8"
REFUSED = b"STOP"
REFUSALS = ("too_many_pixels", "too_much_memory", "unreadable")
MAX_OUTPUT_BYTES = HEADER.size + MAX_PIXELS * 3
# Alpha is laid on white: what most viewers show behind a cut-out, and what the caller most likely looked at.
BACKDROP = (255, 255, 255)
_ROWS = 256


class Refused(Exception):
    """The image will not be decoded; the argument is one of `REFUSALS`."""


def decode(encoded: bytes) -> Pixels:
    """The first frame of `encoded` as upright RGB, in sRGB where the file says what its colours mean.

    Raises Refused. Depths above 8 bits are scaled, alpha is laid on `BACKDROP`, EXIF orientation is applied. More than
    `MAX_PIXELS` become a quarter of them.
    """
    from PIL import Image

    _prepare_pillow(encoded)
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            _check_size(image)
            if image.width * image.height > MAX_PIXELS:
                image.draft(None, (image.width // 2, image.height // 2))  # JPEG alone can
            image.load()
            _check_size(image)
            return _upright_rgb(image.reduce(2) if image.width * image.height > MAX_PIXELS else image)
    except (Refused, MemoryError):
        raise
    except Exception as failure:
        # Damaged files raise at least ten types, SyntaxError and struct.error among them.
        raise Refused("unreadable") from failure


def _prepare_pillow(encoded: bytes) -> None:
    from PIL import AvifImagePlugin, Image

    Image.MAX_IMAGE_PIXELS = None  # `_check_size` rules, without Pillow's warning at a lower count
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one for each core by default, and each takes address space
    for plugin in ("TiffImagePlugin", "WebPImagePlugin"):
        importlib.import_module(f"PIL.{plugin}")  # else Pillow imports all forty plugins to find these
    if encoded[4:8] == b"ftyp":
        import pi_heif

        pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _check_size(image: Pixels) -> None:
    limits = {"JPEG": MAX_JPEG_PIXELS, "MPO": MAX_JPEG_PIXELS, "HEIF": MAX_HEIF_PIXELS}
    if image.width * image.height > limits.get(image.format or "", MAX_PIXELS):
        raise Refused("too_many_pixels")


def _upright_rgb(image: Pixels) -> Pixels:
    profile = image.info.get("icc_profile")
    turn = _turn(image)
    pixels = _on_backdrop(_eight_bit(image))
    pixels = pixels.convert("RGB") if pixels.mode == "P" else pixels
    pixels = _in_srgb(pixels, profile) if isinstance(profile, bytes) else pixels
    pixels = pixels if pixels.mode == "RGB" else pixels.convert("RGB")
    return pixels if turn is None else pixels.transpose(turn)


def _turn(image: Pixels) -> Transpose | None:
    """What makes the image upright by the orientation of EXIF 2.32, 4.6.4; None where that is missing or damaged."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001 - damaged metadata does not make the pixels unusable
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)


def _eight_bit(image: Pixels) -> Pixels:
    """Grey of 16 or 32 bits or of floats brought to 8 bits; Pillow's own conversion would clip it to white.

    16-bit grey is divided by 257. Floats within 0 to 1 are multiplied by 255, 32-bit integers within 16 bits are read
    as 16-bit; anything else is scaled by its own extremes, because no header says what the range means.
    """
    if image.mode.startswith("I;16"):
        return _scaled(image.convert("I"), 1 / 257, 0.0)
    if image.mode not in ("I", "F"):
        return image
    extremes: Any = image.getextrema()
    low, high = extremes
    if low >= 0 and high <= 1 and image.mode == "F":
        return _scaled(image, 255.0, 0.0)
    if low >= 0 and high <= 65_535 and image.mode == "I":
        return _scaled(image, 1 / 257, 0.0)
    scale = 255 / (high - low) if high > low else 0.0
    return _scaled(image, scale, -low * scale)


def _scaled(image: Pixels, scale: float, offset: float) -> Pixels:
    grey = image.point(lambda value: value * scale + offset).convert("L")
    grey.info.pop("transparency", None)  # a level of the old depth, which no longer occurs
    return grey


def _on_backdrop(image: Pixels) -> Pixels:
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    pixels = Image.new("RGB", image.size, BACKDROP)
    pixels.paste(image, mask=image.getchannel("A"))
    return pixels


def _in_srgb(image: Pixels, profile: bytes) -> Pixels:
    """Colours by the file's ICC profile, as wide-gamut phones and print CMYK need; unchanged where it is unusable."""
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        if image.mode != space or "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except Exception:  # noqa: BLE001 - a damaged profile does not make the pixels unusable
        return image
    return image if converted is None else converted


def _write(image: Pixels, output: BinaryIO) -> None:
    """In stripes: a whole copy beside the image would not fit into the memory allowed."""
    output.write(HEADER.pack(DECODED, image.width, image.height))
    for top in range(0, image.height, _ROWS):
        bottom = min(top + _ROWS, image.height)
        output.write(image.crop((0, top, image.width, bottom)).tobytes())


def main() -> None:
    warnings.simplefilter("ignore")
    sys.path.append(sys.argv[1])
    try:
        _write(decode(sys.stdin.buffer.read()), sys.stdout.buffer)
    except MemoryError:
        refusal = "too_much_memory"
    except Refused as refused:
        refusal = str(refused)
    else:
        return
    sys.stdout.buffer.seek(0)
    sys.stdout.buffer.truncate()
    sys.stdout.buffer.write(HEADER.pack(REFUSED, 0, 0) + refusal.encode())


if __name__ == "__main__":
    main()
