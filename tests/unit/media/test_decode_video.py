"""Reference videos as callers send them, made here by ffmpeg: which frames are read, the sound, and what is refused."""

from __future__ import annotations

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.kits.loopback import Server, answering, response, takes_at_most
from tests.kits.pictures import PATH, clip, ffmpeg, frames_of
from worker.base.errors import Cancelled, InputInvalid
from worker.media import decode_video


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9")])
def test_a_video_is_resampled_scaled_and_cropped(name: str, codec: str, tmp_path: Path) -> None:
    frames = frames_of(clip(tmp_path, name, "-c:v", codec, "-pix_fmt", "yuv420p"), width=96, height=32)
    assert len(frames) == 16
    assert {frame.size for frame in frames} == {(96, 32)}
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_video_gives_at_most_the_frames_asked_for(tmp_path: Path) -> None:
    file = clip(tmp_path, "a.mp4", "-pix_fmt", "yuv420p")
    assert [len(frames_of(file, max_frames=count)) for count in (1, 5, 16, 17)] == [1, 5, 16, 16]


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
