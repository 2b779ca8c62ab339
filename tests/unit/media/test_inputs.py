from __future__ import annotations

import base64
import contextlib
import io
import subprocess
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import imageio_ffmpeg
import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from tests.kits.loopback import Server, answering, response
from tests.kits.slow import slow
from worker.base.errors import Cancelled, InputBlocked, InputFailed, InputInvalid, InvalidRequest
from worker.media import decode_image, inputs
from worker.net import Opener

PATH = "job_request_params[0].reference_image_url"
OPENER = Opener(["127.0.0.1"])
pillow_heif.register_heif_opener()  # this process writes them; the sandbox reads with pi-heif
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def uri(encoded: bytes, subtype: str = "png") -> str:
    return f"data:image/{subtype};base64,{base64.b64encode(encoded).decode()}"


def load(encoded: bytes) -> Image.Image:
    return inputs.load_image(uri(encoded), opener=OPENER, path=PATH)


def quarters(size: int = 32) -> Image.Image:
    """Red, green / blue, white."""
    image = Image.new("RGB", (size, size), WHITE)
    half = size // 2
    image.paste(RED, (0, 0, half, half))
    image.paste(GREEN, (half, 0, size, half))
    image.paste(BLUE, (0, half, half, size))
    return image


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    assert image.mode == "RGB"
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))


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


def test_a_rotated_heic_is_upright_and_has_the_colours_of_its_profile() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load(saved(STORED_AS[6](quarters()), "HEIF", exif=exif.tobytes(), quality=95))
    assert near(image, (4, 4), RED, 20)
    assert near(image, (28, 4), GREEN, 20)
    assert near(load(saved(Image.new("RGB", (64, 64), RED), "HEIF", icc_profile=swapped_profile())), (4, 4), BLUE, 30)
    assert near(load(saved(half_clear("RGBA"), "HEIF")), (28, 16), WHITE, 20)


PICTURE = saved(quarters())
BASE64 = base64.b64encode(PICTURE).decode()
# Bytes whose base64 has all that differs between its alphabets, behind the picture: decoders leave them alone.
TAILED = PICTURE + b"\xfb\xef\xbe\xff\xff"


@pytest.mark.parametrize(
    "source",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/x-any;base64,{BASE64}",
        f"data:application/octet-stream;base64,{BASE64}",
        f"data:text/html;base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image/png;name=a.png;base64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{BASE64}",
        f"data:image/png;base64, {BASE64}",
        f"data:image/png;base64,\n{base64.encodebytes(PICTURE).decode()}",
        f"data:image/png;base64,{base64.encodebytes(PICTURE).decode().replace(chr(10), chr(13) + chr(10))}",
        f"data:image/png;base64,{base64.b64encode(TAILED).decode()}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(TAILED).decode()}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{quote(base64.encodebytes(TAILED), safe='')}",
        f"data:image/png,{quote(PICTURE)}",
        f"data:,{quote(PICTURE, safe='')}",
    ],
)
def test_the_bytes_of_a_data_uri_decide(source: str) -> None:
    assert near(inputs.load_image(source, opener=OPENER, path=PATH), (28, 4), GREEN)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"data:image/png;base64,{BASE64[:-8]}!!!!!!!!", "valid base64"),
        (f"data:image/png;base64,{BASE64[:-8]}ä", "valid base64"),
        (f"data:image/png;base64,{BASE64.rstrip('=')[: len(BASE64) // 4 * 4 - 7]}", "valid base64"),
        (f"data:image/png,{BASE64}", "not an image"),
        ("data:text/html;base64,PGh0bWw+", "not an image"),
        ("data:image/png;base64,", "not an image"),
        (f"data:image/png;base64{BASE64}", "comma"),
        ("data:", "comma"),
    ],
)
def test_a_data_uri_that_holds_no_image_is_refused(source: str, message: str) -> None:
    with pytest.raises(InputInvalid, match=message) as caught:
        inputs.load_image(source, opener=OPENER, path=PATH)
    assert caught.value.path == PATH


def test_the_byte_cap_of_data_uris_holds_on_both_sides() -> None:
    cap = inputs.IMAGE_LIMITS.max_bytes
    encoded = saved(quarters(), "BMP")
    assert load(encoded + bytes(cap - len(encoded))).size == (32, 32)
    with pytest.raises(InputFailed, match="25 MB"):
        load(encoded + bytes(cap - len(encoded) + 1))
    with pytest.raises(InputFailed, match="25 MB"):
        load(bytes(cap + 10_000_000))
    escaped = quote(encoded)
    for tail in ("A" * (cap - len(encoded) + 1), "%00" * cap):
        with pytest.raises(InputFailed, match="25 MB"):
            inputs.load_image("data:," + escaped + tail, opener=OPENER, path=PATH)


def test_an_image_is_loaded_from_a_url() -> None:
    with Server(answering(response(saved(quarters())))) as server:
        image = inputs.load_image(server.url("/a.png"), opener=OPENER, path=PATH)
    assert near(image, (4, 4), RED)


def test_a_web_page_in_place_of_an_image_is_refused() -> None:
    with Server(answering(response(b"<html>login</html>"))) as server, pytest.raises(InputInvalid):
        inputs.load_image(server.url("/a.png"), opener=OPENER, path=PATH)


@pytest.mark.parametrize(("source", "error"), [("file:///etc/passwd", InputBlocked), ("/etc/passwd", InvalidRequest)])
def test_local_paths_are_not_opened(source: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        inputs.load_image(source, opener=OPENER, path=PATH)


def test_a_stop_ends_a_decode() -> None:
    stop = threading.Event()
    stop.set()
    source = uri(saved(Image.new("RGB", (6000, 5500)), compress_level=1))
    with pytest.raises(Cancelled):
        inputs.load_image(source, opener=OPENER, path=PATH, stop=stop)


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


def test_a_video_is_fetched_and_nothing_of_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, scratch = tmp_path / "a.mp4", tmp_path / "scratch"
    source = ("-f", "lavfi", "-i", "testsrc2=s=64x48:r=16:d=0.5", "-pix_fmt", "yuv420p")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *source, str(file)], check=True)
    scratch.mkdir()
    monkeypatch.setattr(inputs.tempfile, "tempdir", str(scratch))
    for body in (file.read_bytes(), b"not a video"):
        with Server(answering(response(body))) as server, contextlib.ExitStack() as block:
            if body == b"not a video":
                block.enter_context(pytest.raises(InputInvalid))
            with inputs.fetch_video(server.url("/clip.mp4"), opener=OPENER, path=PATH) as video:
                assert video.size == (64, 48)
                assert len(video.frames(fps=16, width=64, height=48, max_frames=81)) == 8
            assert len(server.requests) == 1
    load(saved(quarters()))
    assert list(scratch.iterdir()) == []


def test_a_picture_is_scaled_by_lanczos() -> None:
    fine = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 64)))  # columns of one pixel
    grey = np.asarray(inputs.fit(fine, 40, 20))[:, 4:-4]
    assert np.abs(grey.astype(int) - 128).max() < 40, "the nearest neighbour leaves them black and white"
    step = Image.fromarray(np.repeat(np.array([[64, 192]], np.uint8), 16, axis=0).repeat(8, axis=1))
    larger = np.asarray(inputs.fit(step, 64, 64))
    assert larger.min() < 60, "a filter without Lanczos' lobes stays between the two"
    assert larger.max() > 196
