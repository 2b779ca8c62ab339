"""Reference videos of every kind that callers send, made here by ffmpeg: what comes out is what a player shows."""

from __future__ import annotations

import itertools
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.kits.loopback import Server, answering, response, takes_at_most
from tests.kits.slow import slow
from worker.base.errors import Cancelled, InputInvalid
from worker.media import decode_video

PATH = "job_request_params[0].reference_video_url"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
DULL_RED = (200, 40, 40)


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def clip(folder: Path, name: str, *options: str, size: str = "64x48", seconds: float = 1, rate: int = 30) -> Path:
    """A test pattern in motion."""
    file = folder / name
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={size}:r={rate}:d={seconds}", *options, file)
    return file


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


def frames_of(file: Path, **asked: int) -> list[Image.Image]:
    video = decode_video.open_video(file, path=PATH)
    return video.frames(**{"fps": 16, "width": 64, "height": 48, "max_frames": 81, **asked})


def near(image: Image.Image, at: tuple[int, int], colour: tuple[int, int, int], tolerance: int = 12) -> bool:
    found = image.getpixel(at)
    assert isinstance(found, tuple)
    return all(abs(a - b) <= tolerance for a, b in zip(found, colour, strict=True))


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_video_is_resampled_scaled_and_cropped(name: str, codec: str, tmp_path: Path) -> None:
    frames = frames_of(clip(tmp_path, name, "-c:v", codec, "-pix_fmt", "yuv420p"), width=96, height=32)
    assert len(frames) == 16
    assert {frame.size for frame in frames} == {(96, 32)}
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_video_gives_at_most_the_frames_asked_for(tmp_path: Path) -> None:
    file = clip(tmp_path, "a.mp4", "-pix_fmt", "yuv420p")
    assert [len(frames_of(file, max_frames=count)) for count in (1, 5, 16, 17)] == [1, 5, 16, 16]


def test_the_frames_are_those_of_the_video(tmp_path: Path) -> None:
    """Green, red, blue, green: a crop to the middle keeps the red and the blue, a stretched picture all four."""
    image = Image.new("RGB", (144, 48), GREEN)
    image.paste(RED, (48, 0, 72, 48))
    image.paste(BLUE, (72, 0, 96, 48))
    frames = frames_of(still(tmp_path / "a.mp4", image), width=48, height=48, fps=8)
    assert len(frames) == 4
    assert near(frames[0], (4, 24), RED, 30)
    assert near(frames[0], (43, 24), BLUE, 30)


def test_a_video_with_an_extreme_aspect_ratio_is_not_blown_up(tmp_path: Path) -> None:
    file = clip(tmp_path, "strip.mp4", "-pix_fmt", "yuv420p", size="16x2000", seconds=0.2)
    assert {frame.size for frame in frames_of(file, width=832, height=480)} == {(832, 480)}


def test_the_frame_size_of_a_video_is_capped(tmp_path: Path) -> None:
    for size, accepted in (("4096x2304", True), ("4112x2304", False)):
        file = clip(tmp_path, "big.mp4", "-pix_fmt", "yuv420p", "-preset", "ultrafast", size=size, seconds=0.04)
        if accepted:
            assert len(frames_of(file)) >= 1
        else:
            with pytest.raises(InputInvalid, match="4096x2304"):
                frames_of(file)


def test_a_file_without_pictures_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tone.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine", "-t", "1", file)
    with pytest.raises(InputInvalid):
        frames_of(file)


def test_other_containers_are_refused(tmp_path: Path) -> None:
    for name in ("a.avi", "a.ts", "a.flv", "a.gif"):
        with pytest.raises(InputInvalid, match="MP4"):
            frames_of(clip(tmp_path, name))


@pytest.mark.parametrize(
    "playlist",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {target}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 5004 RTP/AVP 96\na=control:{target}\n",
        "<?xml version='1.0'?><MPD><BaseURL>{target}</BaseURL></MPD>",
    ],
)
@pytest.mark.parametrize("lead", ["", "\x00\x00\x00\x14ftypisom", "\x1a\x45\xdf\xa3"])
def test_a_playlist_is_refused_and_opens_nothing(playlist: str, lead: str, tmp_path: Path) -> None:
    file = tmp_path / "source"
    with Server(answering(response(b"inner"))) as inner:
        for target in (inner.url("/inner.ts"), "file:///etc/passwd"):
            file.write_bytes(lead.encode("latin-1") + playlist.format(target=target).encode())
            with pytest.raises(InputInvalid):
                frames_of(file)
        assert inner.requests == []


@pytest.mark.slow
def test_a_video_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    file = clip(tmp_path, "long.mp4", "-pix_fmt", "yuv420p", "-preset", "ultrafast", size="1280x720", seconds=8)
    video = decode_video.open_video(file, path=PATH)
    bounds = replace(decode_video.BOUNDS, wall_s=0.3)
    with takes_at_most(20.0), pytest.raises(InputInvalid, match="too long"):
        video.frames(fps=60, width=1920, height=1080, max_frames=9999, bounds=bounds)
    with takes_at_most(20.0), pytest.raises(InputInvalid, match="too long"):
        decode_video.open_video(file, path=PATH, bounds=replace(bounds, wall_s=0.0))


def test_a_stop_ends_the_decoding_of_a_video(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    file = clip(tmp_path, "clip.mp4", "-pix_fmt", "yuv420p")
    with pytest.raises(Cancelled):
        decode_video.open_video(file, path=PATH, stop=stop)
    with pytest.raises(Cancelled):
        decode_video.open_video(file, path=PATH).frames(fps=16, width=64, height=48, max_frames=9, stop=stop)


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


@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_a_video_that_begins_after_its_sound_begins_with_its_first_frame(name: str, tmp_path: Path) -> None:
    """Each frame is lighter than the one before it."""
    lighter = "color=black:s=64x48:r=16:d=1,geq=lum='16+12*N':cb=128:cr=128"
    made = tmp_path / "silent.mp4"
    ffmpeg("-f", "lavfi", "-i", lighter, "-pix_fmt", "yuv420p", "-crf", "4", made)
    codecs = ("-c:v", "libvpx-vp9", "-c:a", "libopus") if name.endswith("webm") else ("-c:v", "copy")
    file = tmp_path / name
    ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=2", "-itsoffset", "1", "-i", made, "-map", "0:a", "-map", "1:v"), *codecs, file
    )
    greys = [frame.convert("L").getpixel((32, 24)) for frame in frames_of(file)]
    assert len(greys) == 16
    assert greys[0] < 10  # type: ignore[operator]
    assert all(after > before for before, after in itertools.pairwise(greys))  # type: ignore[operator]


@pytest.mark.slow  # it measures memory
def test_a_sparse_video_is_read_at_once_and_in_little_memory(tmp_path: Path) -> None:
    """12 frames 30 s apart: 330 s hold 5,280 frames of 16 fps, of which 161 are asked for."""
    file = clip(
        tmp_path,
        "sparse.mp4",
        *("-vf", "setpts=N*30/TB", "-fps_mode", "passthrough", "-enc_time_base", "1:1000", "-pix_fmt", "yuv420p"),
        size="1280x720",
        seconds=0.5,
        rate=24,
    )
    bounds = replace(decode_video.BOUNDS, memory_bytes=1_200_000_000)
    with takes_at_most(20.0):
        video = decode_video.open_video(file, path=PATH)
        assert len(video.frames(fps=16, width=1280, height=720, max_frames=161, bounds=bounds)) == 161


@pytest.mark.parametrize("rate", [8, 16, 25, 30, 60])
def test_the_frames_of_a_second_are_as_many_as_asked_for(rate: int, tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")):
        file = clip(tmp_path, name, "-c:v", codec, "-pix_fmt", "yuv420p", rate=rate)
        assert len(frames_of(file)) == 16, name


# --- sound


def heard(file: Path) -> NDArray[np.float32]:
    """The samples of the first channel, -1 to 1, at 48 kHz."""
    with av.open(str(file)) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=48000)
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        return np.concatenate([part.to_ndarray()[0] for part in parts])


def loud(samples: NDArray[np.float32], begins: float, ends: float) -> bool:
    """Whether there is sound between these seconds."""
    return bool(np.abs(samples[int(48000 * begins) : int(48000 * ends)]).mean() > 0.01)


def test_the_sound_begins_with_the_first_frame(tmp_path: Path) -> None:
    """The tone begins at 1.5 s of the file, the pictures at 1 s, and 0.8 s of them are used."""
    made, file = clip(tmp_path, "made.mp4", seconds=1), tmp_path / "late.mp4"
    ffmpeg(
        *("-f", "lavfi", "-i", "sine=d=0.5,adelay=1500,apad=whole_dur=3", "-itsoffset", "1", "-i", made),
        *("-map", "0:a", "-map", "1:v", "-c:v", "copy", file),
    )
    source = decode_video.open_video(file, path="p")
    assert (source.has_sound, source.starts_s) == (True, 1.0)
    source.write_sound(tmp_path / "sound.mka", seconds=0.8)
    samples = heard(tmp_path / "sound.mka")
    assert len(samples) / 48000 == pytest.approx(0.8, abs=0.001)
    assert [loud(samples, 0, 0.45), loud(samples, 0.55, 0.8)] == [False, True]


def test_a_sound_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    source = decode_video.open_video(clip(tmp_path, "silent.mp4"), path="p")
    with pytest.raises(InputInvalid, match="cannot be decoded"):
        source.write_sound(tmp_path / "sound.mka", seconds=1)
