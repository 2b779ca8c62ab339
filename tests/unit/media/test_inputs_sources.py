"""Where inputs are sent: data URIs, URLs and no local paths; what is fetched is removed afterwards."""

from __future__ import annotations

import base64
import contextlib
import threading
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tests.kits.loopback import Server, answering, response
from tests.kits.pictures import GREEN, OPENER, PATH, RED, clip, load, near, quarters, saved, uri
from worker.base.errors import Cancelled, InputBlocked, InputFailed, InputInvalid, InvalidRequest
from worker.media import inputs

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


def test_a_video_is_fetched_and_nothing_of_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, scratch = clip(tmp_path, "a.mp4", "-pix_fmt", "yuv420p", seconds=0.5, rate=16), tmp_path / "scratch"
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
