"""What is decoded is what a player shows: colours, HDR, oblong pixels, rotation, and interlaced pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.kits.pictures import BLUE, GREEN, PATH, RED, WHITE, ffmpeg, frames_of, near
from tests.kits.slow import slow
from worker.media import decode_video

DULL_RED = (200, 40, 40)


def still(file: Path, image: Image.Image, *options: str, seconds: float = 0.5, rate: int = 8) -> Path:
    """A video of `image`, as H.264 of nearly no loss where `options` say nothing else."""
    ffmpeg(*_input(image, file, seconds, rate), "-pix_fmt", "yuv444p", "-crf", "1", *options, file)
    return file


def _input(image: Image.Image, beside: Path, seconds: float, rate: int) -> tuple[str | Path, ...]:
    picture = beside.with_suffix(".png")
    image.save(picture)
    return ("-loop", "1", "-framerate", str(rate), "-t", str(seconds), "-i", picture)


def halves(left: tuple[int, int, int], right: tuple[int, int, int], size: tuple[int, int] = (64, 48)) -> Image.Image:
    image = Image.new("RGB", size, right)
    image.paste(left, (0, 0, size[0] // 2, size[1]))
    return image


def test_the_frames_are_those_of_the_video(tmp_path: Path) -> None:
    """Green, red, blue, green: a crop to the middle keeps the red and the blue, a stretched picture all four."""
    image = Image.new("RGB", (144, 48), GREEN)
    image.paste(RED, (48, 0, 72, 48))
    image.paste(BLUE, (72, 0, 96, 48))
    frames = frames_of(still(tmp_path / "a.mp4", image), width=48, height=48, fps=8)
    assert len(frames) == 4
    assert near(frames[0], (4, 24), RED, 30)
    assert near(frames[0], (43, 24), BLUE, 30)


@pytest.mark.parametrize("others", ["", ",setparams=color_primaries=unknown:colorspace=unknown"])
@pytest.mark.parametrize("transfer", ["arib-std-b67", "smpte2084"])
def test_hdr_is_tone_mapped(transfer: str, others: str, tmp_path: Path) -> None:
    """White stands at 203 cd/m2, as BT.2408 has it; the transfer alone says that it is HDR."""
    file = tmp_path / "hdr.mp4"
    made = f"zscale=tin=bt709:pin=bt709:min=gbr:rin=pc:t={transfer}:p=bt2020:m=bt2020nc:r=tv:npl=203"
    ffmpeg(
        *_input(halves(DULL_RED, WHITE), file, 0.5, 8),
        *("-vf", f"format=gbrp,{made},format=yuv420p10le{others}"),
        *("-c:v", "libx265", "-crf", "8", "-x265-params", "log-level=none", file),
    )
    frame = frames_of(file)[0]
    assert near(frame, (50, 24), WHITE, 5)
    assert near(frame, (14, 24), DULL_RED, 4)


@pytest.mark.parametrize(
    ("size", "tag", "encoded_as"),
    [
        ((1280, 720), None, "bt709"),
        ((64, 48), None, "smpte170m"),
        ((64, 48), "bt709", "bt709"),
        *slow(
            ((720, 1280), None, "bt709"),
            ((1278, 718), None, "smpte170m"),
            ((1280, 720), "smpte170m", "smpte170m"),
        ),
    ],
)
def test_untagged_colours_are_those_of_the_size(
    size: tuple[int, int], tag: str | None, encoded_as: str, tmp_path: Path
) -> None:
    """BT.709 from 720 lines on and BT.601 below, as players assume it; a tag rules."""
    file = still(
        tmp_path / "a.mp4",
        halves(DULL_RED, GREEN, size),
        *("-vf", f"scale=out_color_matrix={encoded_as},setparams=colorspace={tag or 'unknown'}"),
    )
    frame = frames_of(file)[0]
    assert near(frame, (14, 24), DULL_RED, 4)
    assert near(frame, (50, 24), GREEN, 4)


def disc(size: tuple[int, int], squeezed: float = 1.0) -> Image.Image:
    """White on black, of half the height; `squeezed` is the width of a pixel as it will be shown."""
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    inside = (rows - height / 2) ** 2 + ((columns - width / 2) * squeezed) ** 2 < (height / 4) ** 2
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8)).convert("RGB")


def extent(frame: Image.Image) -> tuple[int, int]:
    """Width and height of what is bright."""
    bright = np.asarray(frame)[..., 0] > 127
    return int(bright.any(axis=0).sum()), int(bright.any(axis=1).sum())


@pytest.mark.parametrize("asked", [(320, 180), (180, 180), (320, 96)])
def test_a_circle_of_oblong_pixels_is_a_circle(asked: tuple[int, int], tmp_path: Path) -> None:
    file = still(tmp_path / "a.mp4", disc((288, 216), 4 / 3), "-vf", "setsar=4/3")
    video = decode_video.open_video(file, path=PATH)
    assert video.size == (384, 216)
    frame = video.frames(fps=8, width=asked[0], height=asked[1], max_frames=1)[0]
    wide, high = extent(frame)
    assert abs(wide - min(high, asked[1])) <= 2 if high < asked[1] else wide >= high


@pytest.mark.parametrize(("turn", "corner"), [(90, (4, 60)), (180, (60, 40)), (270, (44, 4))])
def test_a_rotated_video_is_upright(turn: int, corner: tuple[int, int], tmp_path: Path) -> None:
    """Red at the top left as it is stored; the display matrix turns it anticlockwise."""
    image = Image.new("RGB", (64, 48), BLUE)
    image.paste(RED, (0, 0, 12, 12))
    stored = still(tmp_path / "a.mp4", image)
    file = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", str(turn), "-i", stored, "-c", "copy", file)
    video = decode_video.open_video(file, path=PATH)
    assert video.size == ((64, 48) if turn == 180 else (48, 64))
    frame = video.frames(fps=8, width=video.size[0], height=video.size[1], max_frames=1)[0]
    assert near(frame, corner, RED, 30)


def test_a_rotated_video_of_oblong_pixels_has_the_size_that_is_shown(tmp_path: Path) -> None:
    stored = still(tmp_path / "a.mp4", disc((288, 216), 4 / 3), "-vf", "setsar=4/3")
    file = tmp_path / "turned.mp4"
    ffmpeg("-display_rotation", "90", "-i", stored, "-c", "copy", file)
    video = decode_video.open_video(file, path=PATH)
    assert video.size == (162, 288)
    wide, high = extent(video.frames(fps=8, width=216, height=384, max_frames=1)[0])
    assert abs(wide - high) <= 2


def combing(frame: Image.Image) -> float:
    """How much neighbouring rows differ beyond rows that are two apart, in grey levels."""
    grey: NDArray[np.float32] = np.asarray(frame.convert("L"), dtype=np.float32)
    return float(np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2).mean() - np.abs(grey[2:] - grey[:-2]).mean() / 2)


@pytest.mark.parametrize(("flag", "combed"), [("tff", False), ("bff", False), ("prog", True)])
def test_only_what_is_flagged_interlaced_is_deinterlaced(flag: str, combed: bool, tmp_path: Path) -> None:
    """A bar that moves 8 pixels a field: with its fields woven into one frame its edges are combs."""
    order = "bff" if flag == "bff" else "tff"
    weave = f"interlace=scan={order}:lowpass=off,setfield={flag}"
    moving = "color=black:s=320x240:r=50:d=1[back];color=white:s=60x240:r=50:d=1[bar];[back][bar]overlay=x='n*8-60'"
    file = tmp_path / "a.mp4"
    flags = () if flag == "prog" else ("-flags", "+ildct+ilme")
    ffmpeg("-f", "lavfi", "-i", f"{moving},{weave}", "-pix_fmt", "yuv420p", "-crf", "4", *flags, file)
    frames = frames_of(file, fps=25, width=320, height=240)
    assert len(frames) == 25
    assert (combing(frames[10]) > 5) == combed
