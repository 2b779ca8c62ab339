"""Files made smaller, by the real ffmpeg at tiny sizes."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from tests.kits.loopback import takes_at_most
from tests.kits.slow import slow
from worker.base.errors import Cancelled, EncodeFailed
from worker.base.stop import Deadline
from worker.media import FORMATS, VideoFile
from worker.media.shrink import encode_to_fit, least_bytes
from worker.request.payload import OutputCodec, OutputFormat

SIDE, FRAMES, FPS = 256, 9, 8


def noise(folder: Path, name: OutputFormat) -> VideoFile:
    """The largest that a video of its size can be."""
    path = folder / f"large.{name}"
    pictures = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo", "-pixel_format", "rgb24"]
    command += ["-video_size", f"{SIDE}x{SIDE}", "-framerate", str(FPS), "-i", "pipe:0"]
    command += ["-pix_fmt", "yuv420p"] if name in ("mp4", "webm") else []
    command += ["-c:v", "libvpx-vp9", "-cpu-used", "8", "-crf", "20", "-b:v", "0"] if name == "webm" else []
    command += ["-c:v", "libwebp_anim"] if name == "webp" else []
    subprocess.run([*command, str(path)], input=pictures.tobytes(), check=True)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return VideoFile(path, None, SIDE, SIDE, FRAMES, FPS, len(content), digest, format=FORMATS[name])


@pytest.mark.parametrize("share", [0.5, *slow(None)])
@pytest.mark.parametrize(
    ("name", "codec"),
    [("mp4", "h264"), *slow(("gif", "gif"), ("mp4", "hevc"), ("mp4", "av1"), ("webm", "vp9"), ("webp", "webp"))],
)
def test_the_file_fits_and_has_every_frame(
    tmp_path: Path, name: OutputFormat, codec: OutputCodec, share: float | None
) -> None:
    """Half of what it was, and the least that is promised."""
    video = noise(tmp_path, name)
    least = least_bytes(codec, SIDE, SIDE, FRAMES)
    at_most = least if share is None else int(video.size_bytes * share)
    fitted = encode_to_fit(video, at_most, codec=codec, path=tmp_path / f"small.{name}")
    content = fitted.path.read_bytes()
    assert len(content) == fitted.size_bytes <= at_most
    assert hashlib.sha256(content).hexdigest() == fitted.sha256
    assert (
        replace(fitted, path=video.path, width=SIDE, height=SIDE, size_bytes=video.size_bytes, sha256=video.sha256)
        == video
    )
    if name == "webp":  # PyAV reads no animated WebP
        return
    with av.open(str(fitted.path)) as opened:
        pictures = [frame.to_ndarray(format="rgb24").shape for frame in opened.decode(video=0)]
    assert pictures == [(fitted.height, fitted.width, 3)] * FRAMES


def test_what_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EncodeFailed, match="smaller than 1000 bytes"):
        encode_to_fit(noise(tmp_path, "mp4"), 1000, codec="h264", path=tmp_path / "small.mp4")


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    video = noise(tmp_path, "mp4")
    video.path.write_bytes(b"not a video")
    with pytest.raises(EncodeFailed, match="could not be encoded again"):
        encode_to_fit(video, 10_000, codec="h264", path=tmp_path / "small.mp4")


def test_a_stop_ends_it(tmp_path: Path) -> None:
    video = noise(tmp_path, "mp4")
    with takes_at_most(10), pytest.raises(Cancelled):
        encode_to_fit(video, 10_000, codec="hevc", path=tmp_path / "small.mp4", stop=Deadline.after(0.0))
