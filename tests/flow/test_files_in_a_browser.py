"""Formats and codecs in a real browser: it plays them through, and shows the right frame in the right colours.

All but HEVC, which Debian's Chromium does not play.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from pytest_httpserver import HTTPServer

from tests.kits.browser import chromium
from worker.media.encode import encode
from worker.media.formats import FORMATS
from worker.request.payload import OutputCodec
from worker.request.values import Output

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SIDE, FPS, COUNT = 128, 8, 16
# The right half of a frame; the left half is green. Each lasts a quarter of the clip.
COLOURS = ((200, 40, 40), (40, 40, 200), (230, 230, 230), (120, 60, 160))
GREEN = (40, 160, 60)
# Chromium's own conversion is off by up to 10; read by the matrix of BT.601 these colours are off by 14 to 19.
NEAR = 12

PLAY = """async ([url, seconds, side]) => {
  const video = document.createElement("video");
  video.muted = true;
  const once = (name) => new Promise((ok, bad) => {
    video.addEventListener(name, ok, {once: true});
    video.addEventListener("error", () => bad(new Error(video.error.message)), {once: true});
  });
  const ready = once("canplaythrough");
  video.src = URL.createObjectURL(await (await fetch(url)).blob());  // a server without ranges cannot be sought in
  await ready;
  document.body.append(video);
  const shown = new Promise((ok) => {  // frames from before the seek may still be reported
    const look = (_, frame) => Math.abs(frame.mediaTime - seconds) < 0.3 ? ok() : video.requestVideoFrameCallback(look);
    video.requestVideoFrameCallback(look);
  });
  video.currentTime = seconds;
  await shown;
  const canvas = Object.assign(document.createElement("canvas"), {width: side, height: side});
  const drawing = canvas.getContext("2d");
  drawing.drawImage(video, 0, 0);
  const at = (x) => [...drawing.getImageData(x, side / 2, 1, 1).data].slice(0, 3);
  return [[video.videoWidth, video.videoHeight, video.duration], at(side / 4), at(3 * side / 4)];
}"""
SHOW = """async ([url, side]) => {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const canvas = Object.assign(document.createElement("canvas"), {width: side, height: side});
  const drawing = canvas.getContext("2d");
  drawing.drawImage(picture, 0, 0);
  const at = (x) => [...drawing.getImageData(x, side / 2, 1, 1).data].slice(0, 3);
  return [[picture.naturalWidth, picture.naturalHeight], at(side / 4), at(3 * side / 4)];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser: Browser, httpserver: HTTPServer) -> Iterator[Page]:
    httpserver.expect_request("/").respond_with_data("<!doctype html>", content_type="text/html")
    opened = browser.new_page()
    opened.goto(httpserver.url_for("/"))
    yield opened
    opened.close()


def frames() -> list[np.ndarray]:
    made = []
    for number in range(COUNT):
        frame = np.empty((SIDE, SIDE, 3), np.uint8)
        frame[:, : SIDE // 2] = GREEN
        frame[:, SIDE // 2 :] = COLOURS[number * len(COLOURS) // COUNT]
        made.append(frame)
    return made


def served(output: Output, folder: Path, httpserver: HTTPServer) -> str:
    shown = FORMATS[output.format]
    path = folder / f"clip{shown.suffix}"
    encode(frames(), path=path, width=SIDE, height=SIDE, num_frames=COUNT, fps=FPS, poster=None, output=output)
    httpserver.expect_request(f"/{path.name}").respond_with_data(path.read_bytes(), content_type=shown.content_type)
    return httpserver.url_for(f"/{path.name}")


@pytest.mark.parametrize(
    ("output_format", "codec"), [("mp4", "h264"), ("mp4", "av1"), ("webm", "vp9"), ("webm", "av1")]
)
def test_a_video_plays_through_and_shows_the_right_frame(
    page: Page, httpserver: HTTPServer, tmp_path: Path, output_format: str, codec: OutputCodec
) -> None:
    url = served(Output(format=output_format, codec=codec), tmp_path, httpserver)  # type: ignore[arg-type]
    for number, colour in enumerate(COLOURS):
        seconds = (number + 0.5) * COUNT / FPS / len(COLOURS)
        (width, height, duration), left, right = page.evaluate(PLAY, [url, seconds, SIDE])
        assert (width, height) == (SIDE, SIDE)
        assert duration == pytest.approx(COUNT / FPS, abs=0.02)
        assert np.abs(np.subtract(left, GREEN)).max() <= NEAR
        assert np.abs(np.subtract(right, colour)).max() <= NEAR


@pytest.mark.parametrize("output_format", ["gif", "webp"])
def test_a_moving_picture_is_shown(page: Page, httpserver: HTTPServer, tmp_path: Path, output_format: str) -> None:
    url = served(Output(format=output_format, codec=output_format), tmp_path, httpserver)  # type: ignore[arg-type]
    size, left, right = page.evaluate(SHOW, [url, SIDE])
    assert size == [SIDE, SIDE]
    assert np.abs(np.subtract(left, GREEN)).max() <= NEAR
    assert np.abs(np.subtract(right, COLOURS[0])).max() <= NEAR
