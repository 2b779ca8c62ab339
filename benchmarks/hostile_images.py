"""Feeds mutated images to the worker's image decoder: every one must become an image or a typed error.

    python -m benchmarks.hostile_images --count 20000 --jobs 2

Each image is one of 8 formats, saved by Pillow in several modes and damaged in one of several ways, from a seed that
reproduces it. Reports counts by outcome, the most memory that one decoding process took and the slowest one; exits
with 1 at the first outcome that is neither an image nor an InputInvalid.
"""

from __future__ import annotations

import argparse
import base64
import collections
import functools
import io
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from worker.base.errors import InputInvalid
from worker.media import load_image
from worker.net import Opener

FORMATS: dict[str, tuple[str, tuple[str, ...], dict[str, object]]] = {
    "jpeg": ("JPEG", ("RGB", "L", "CMYK"), {"quality": 80}),
    "jpeg-progressive": ("JPEG", ("RGB",), {"progressive": True}),
    "png": ("PNG", ("RGB", "RGBA", "P", "L", "LA", "1", "I;16"), {}),
    "webp": ("WEBP", ("RGB", "RGBA"), {}),
    "gif": ("GIF", ("P", "L"), {}),
    "bmp": ("BMP", ("RGB", "P", "1"), {}),
    "tiff": ("TIFF", ("RGB", "RGBA", "CMYK", "I;16", "F", "LAB"), {"compression": "tiff_lzw"}),
    "avif": ("AVIF", ("RGB", "RGBA"), {"speed": 10}),
}
BOMB_MEGAPIXELS = (88, 176, 361)


@functools.cache
def sample(name: str, mode: str) -> bytes:
    """A small good image of the format `name` (a key of FORMATS) in `mode`."""
    kind, _, options = FORMATS[name]
    gradient = Image.linear_gradient("L").resize((61, 47))
    image = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
    if mode == "I;16":
        image = gradient.convert("I").point(lambda value: value * 257.0).convert("I;16")
    elif mode == "LAB":
        image = Image.merge("LAB", image.split())
    else:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_bomb(megapixels: int) -> bytes:
    """A true PNG of that many pixels in a few kilobytes: every row is zeros."""
    side = int((megapixels * 1_000_000) ** 0.5)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((1 + (side + 7) // 8) * side), 9)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 20)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_header(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 6)):
        data[rng.randrange(min(64, len(data)))] = rng.randrange(256)


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _extreme(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((1, 2, 4))
    at = rng.randrange(max(1, len(data) - width))
    data[at : at + width] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * width


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 64)] * rng.randint(1, 8)


def _noise(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at : at + 256] = rng.randbytes(256)


def _graft(data: bytearray, rng: random.Random) -> None:
    name = rng.choice(sorted(FORMATS))
    other = sample(name, FORMATS[name][1][0])
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    *(_flip, _flip_header, _truncate, _extreme, _cut, _repeat, _noise, _graft),
)


def mutant(seed: int) -> tuple[str, bytes]:
    """The name and the bytes of the damaged image number `seed`. Neighbouring seeds are of different formats."""
    rng = random.Random(seed)
    name = sorted(FORMATS)[seed % len(FORMATS)]
    mode = rng.choice(FORMATS[name][1])
    data = bytearray(sample(name, mode))
    for _ in range(rng.randint(1, 3)):
        if data:
            rng.choice(MUTATIONS)(data, rng)
    return f"{name} {mode} seed {seed}", bytes(data)


def outcome(encoded: bytes) -> str:
    """`image` or `refused`; any other way to end is an exception."""
    source = "data:image/png;base64," + base64.b64encode(encoded).decode()
    try:
        image = load_image(source, opener=Opener(), path="reference_image_url")
    except InputInvalid:
        return "refused"
    if image.mode != "RGB":
        raise AssertionError(f"decoded to {image.mode}")
    return "image"


def _timed(seed: int) -> tuple[str, str, float]:
    name, encoded = mutant(seed)
    began = time.monotonic()
    return name, outcome(encoded), time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    for megapixels in BOMB_MEGAPIXELS:
        print(f"bomb of {megapixels} MP: {outcome(png_bomb(megapixels))}")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest = (0.0, "")
    with ThreadPoolExecutor(asked.jobs) as pool:
        for name, result, took_s in pool.map(_timed, range(asked.first, asked.first + asked.count)):
            counts[name.split()[0], result] += 1
            slowest = max(slowest, (took_s, name))
    for (name, result), count in sorted(counts.items()):
        print(f"{name:18} {result:8} {count}")
    peak_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    print(f"{sum(counts.values())} images, largest decoder {peak_mb:.0f} MB, slowest {slowest[0]:.2f} s ({slowest[1]})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
