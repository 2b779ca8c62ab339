"""Images of every format, orientation, colour mode and profile become upright RGB, and what is none is refused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.kits.pictures import BLUE, GREEN, PATH, RED, WHITE, load, near, quarters, saved
from tests.kits.slow import slow
from worker.base.errors import InputInvalid


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("AVIF", {"quality": 95}),
        ("HEIF", {"quality": 95}),
    ],
)
def test_each_accepted_format_becomes_rgb_at_its_own_size(kind: str, options: dict[str, object]) -> None:
    image = load(saved(quarters(), kind, **options))
    assert image.size == (32, 32)
    for at, colour in (((4, 4), RED), ((28, 4), GREEN), ((4, 28), BLUE), ((28, 28), WHITE)):
        assert near(image, at, colour)


@pytest.mark.parametrize("kind", ["ICO", "PPM", "TGA", "PCX", "JPEG2000", "ICNS", "DDS", "SGI", "PDF", "EPS"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(InputInvalid, match="send a JPEG, PNG, WebP, HEIC, GIF, BMP, TIFF or AVIF") as caught:
        load(saved(quarters(), kind))
    assert caught.value.path == PATH


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(InputInvalid):
        load(content)


def test_a_truncated_image_is_refused() -> None:
    encoded = saved(Image.effect_noise((64, 64), 50), "JPEG")
    with pytest.raises(InputInvalid):
        load(encoded[: len(encoded) // 2])


# What each orientation of EXIF says about where the stored image's first row and column belong.
STORED_AS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda upright: upright,
    2: lambda upright: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda upright: upright.transpose(Image.Transpose.ROTATE_180),
    4: lambda upright: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda upright: upright.transpose(Image.Transpose.TRANSPOSE),
    6: lambda upright: upright.transpose(Image.Transpose.ROTATE_90),
    7: lambda upright: upright.transpose(Image.Transpose.TRANSVERSE),
    8: lambda upright: upright.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", [1, 6, *slow(2, 3, 4, 5, 7, 8)])
def test_every_orientation_is_made_upright(orientation: int) -> None:
    upright = quarters().resize((48, 32), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        image = load(saved(STORED_AS[orientation](upright), kind, exif=exif, quality=95))
        assert image.size == (48, 32), kind
        assert near(image, (4, 4), RED, 40), kind
        assert near(image, (44, 4), GREEN, 40), kind
        assert near(image, (4, 28), BLUE, 40), kind


@pytest.mark.parametrize("orientation", [0, 9, 65_535])
def test_a_meaningless_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert near(load(saved(quarters(), exif=exif)), (4, 4), RED)


def test_damaged_exif_is_ignored() -> None:
    assert near(load(saved(quarters(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")), (4, 4), RED)


def half_clear(mode: str) -> Image.Image:
    """Black on the left; on the right black as well, but with alpha 0."""
    alpha = Image.new("L", (32, 32), 255)
    alpha.paste(0, (16, 0, 32, 32))
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    image.putalpha(alpha)
    return image.convert(mode)


@pytest.mark.parametrize(
    "encoded",
    [
        saved(half_clear("RGBA")),
        saved(half_clear("LA")),
        saved(half_clear("RGBA"), "WEBP", lossless=True),
        saved(half_clear("RGBA"), "TIFF"),
        saved(half_clear("RGBA"), "GIF"),
        saved(half_clear("RGBA").quantize(4)),
        saved(half_clear("L").convert("RGB"), transparency=(0, 0, 0)),
    ],
    ids=["png", "png-la", "webp", "tiff", "gif", "png-palette", "png-colour-key"],
)
def test_alpha_is_laid_on_white(encoded: bytes) -> None:
    image = load(encoded)
    assert near(image, (28, 16), WHITE)


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert near(load(saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)))), (4, 4), (127, 127, 127), 2)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(kind: str) -> None:
    image = load(saved(quarters().convert("CMYK"), kind))
    assert near(image, (4, 4), RED, 30)
    assert near(image, (28, 28), WHITE, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LAB", "YCbCr"])
def test_other_colour_modes_keep_black_and_white(mode: str) -> None:
    image = Image.new("RGB", (32, 32), WHITE)
    image.paste((0, 0, 0), (0, 0, 16, 32))
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        assert converted is not None
        encoded = saved(converted, "TIFF")
    else:
        encoded = saved(image.convert(mode), "TIFF")
    assert near(load(encoded), (4, 16), (0, 0, 0))
    assert near(load(encoded), (28, 16), WHITE)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 257 * 64, 257 * 128, 65_535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = load(saved(Image.fromarray(levels), kind))
        assert [image.getpixel((x, 0))[0] for x in range(4)] == [0, 64, 128, 255]  # type: ignore[index]


def test_sixteen_bit_grey_with_a_colour_key_is_read() -> None:
    levels = np.full((4, 4), 257 * 100, dtype=np.uint16)
    assert near(load(saved(Image.fromarray(levels), transparency=1)), (1, 1), (100, 100, 100), 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 127, 255]),
        ([0.0, 50.0, 100.0], [0, 127, 255]),
        ([-1.0, 0.0, 1.0], [0, 127, 255]),
        ([5.0, 5.0, 5.0], [0, 0, 0]),
    ],
)
def test_floats_are_scaled_by_their_range(values: list[float], expected: list[int]) -> None:
    image = load(saved(Image.fromarray(np.array([values], dtype=np.float32)), "TIFF"))
    found = [image.getpixel((x, 0))[0] for x in range(3)]  # type: ignore[index]
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    encoded = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    assert near(load(encoded), (8, 8), RED)


def swapped_profile() -> bytes:
    """sRGB's profile with red's and blue's primaries exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)


def test_the_colours_of_a_profile_are_converted_to_srgb() -> None:
    image = Image.new("RGB", (8, 8), RED)
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        assert near(load(saved(image, kind, icc_profile=swapped_profile())), (4, 4), BLUE, 20), kind
    assert near(load(saved(image.quantize(4), icc_profile=swapped_profile())), (4, 4), BLUE, 20)
    translucent = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert near(load(saved(translucent, icc_profile=swapped_profile())), (4, 4), WHITE)


def test_a_profile_that_fits_no_rgb_image_is_ignored() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    other_space = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for profile in (b"damaged", other_space, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()):
        assert near(load(saved(image, icc_profile=profile)), (4, 4), (200, 100, 50), 1)
    grey = Image.new("L", (8, 8), 100)
    assert near(load(saved(grey, icc_profile=swapped_profile())), (4, 4), (100, 100, 100), 1)


def test_a_rotated_heic_is_upright_and_has_the_colours_of_its_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load(saved(STORED_AS[6](quarters()), "HEIF", exif=exif.tobytes(), quality=95))
    assert near(image, (4, 4), RED, 20)
    assert near(image, (28, 4), GREEN, 20)
    assert near(load(saved(Image.new("RGB", (64, 64), RED), "HEIF", icc_profile=swapped_profile())), (4, 4), BLUE, 30)
    assert near(load(saved(half_clear("RGBA"), "HEIF")), (28, 16), WHITE, 20)
