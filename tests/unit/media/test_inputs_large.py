"""Large images: the caps on pixels, on both sides, and the memory that decoding may take."""

from __future__ import annotations

import warnings
import zlib

import pytest
from PIL import Image

from tests.kits.pictures import GREEN, RED, load, near, quarters, saved
from tests.kits.slow import slow
from worker.base.errors import InputInvalid
from worker.media import decode_image


def header_only_png(width: int, height: int) -> bytes:
    encoded = bytearray(saved(Image.new("1", (8, 8))))
    encoded[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    encoded[29:33] = zlib.crc32(encoded[12:29]).to_bytes(4, "big")
    return bytes(encoded)


def test_the_pixel_cap_holds_on_both_sides() -> None:
    assert decode_image.MAX_PIXELS == 6000 * 5500
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(saved(Image.new("L", (6000, 5500)), compress_level=1)).size == (6000, 5500)
        with pytest.raises(InputInvalid, match="more than 33 megapixels"):
            load(saved(Image.new("1", (6000, 5501)), compress_level=1))
        with pytest.raises(InputInvalid, match="more than 33 megapixels"):
            load(header_only_png(2**31 - 1, 2**31 - 1))


def large(width: int, height: int, kind: str, **options: object) -> bytes:
    return saved(quarters(16).resize((width, height), Image.Resampling.NEAREST), kind, **options)


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("JPEG", (8064, 6048)),
        *slow(("JPEG", (8160, 6144)), ("MPO", (8064, 6048)), ("JPEG", (11_000, 10_000))),
    ],
)
def test_a_large_jpeg_is_halved_within_the_memory_allowed(kind: str, size: tuple[int, int]) -> None:
    image = load(large(*size, kind))
    assert image.size == (size[0] // 2, size[1] // 2)
    assert near(image, (10, 10), RED)
    assert near(image, (image.width - 10, 10), GREEN)


@pytest.mark.slow
def test_a_large_progressive_jpeg_fits_into_the_memory_allowed() -> None:
    assert load(large(8160, 6144, "JPEG", progressive=True, subsampling=0)).size == (4080, 3072)


def test_a_large_heic_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_image, "MAX_PIXELS", 64 * 64 - 1)
    assert decode_image.decode(saved(quarters(64), "HEIF")).size == (32, 32)
    assert decode_image.decode(saved(quarters(62), "HEIF")).size == (62, 62)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_large_heic_is_halved_within_the_memory_allowed() -> None:
    image = load(large(8064, 6048, "HEIF", quality=50, enc_params={"preset": "ultrafast"}))
    assert image.size == (4032, 3024)
    assert near(image, (4022, 10), GREEN, 20)


def with_sides(encoded: bytes, kind: str, width: int, height: int) -> bytes:
    """A small file that says it has these sides."""
    if kind == "JPEG":
        at = encoded.index(b"\xff\xc0") + 5
        return encoded[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + encoded[at + 4 :]
    at = encoded.index(b"ispe") + 8
    return encoded[:at] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + encoded[at + 8 :]


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", (11_000, 10_000)), ("HEIF", (8500, 6000))])
def test_the_pixel_cap_of_what_phones_write_holds_on_both_sides(kind: str, limit: tuple[int, int]) -> None:
    """Beyond the cap nothing is decoded; at the cap a HEIC that lies about its size is damaged. A JPEG: see above."""
    encoded = saved(quarters(64), kind)
    if kind == "HEIF":
        with pytest.raises(InputInvalid, match="not an image"):
            load(with_sides(encoded, kind, *limit))
    with pytest.raises(InputInvalid, match=r"more than 33 megapixels \(JPEG 110, HEIC 51\): send a smaller"):
        load(with_sides(encoded, kind, limit[0] + 1, limit[1]))
