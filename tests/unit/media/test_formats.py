"""Every format and codec is really made, and read back by others: PyAV for videos, Pillow for pictures that move."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
from PIL import Image

from tests.kits.frames import moving
from tests.kits.slow import slow
from worker.base.errors import Unsupported
from worker.media import FORMATS, VideoFile, formats
from worker.media.encode import encode
from worker.media.ffmpeg import encoders, program
from worker.request.parse import parse
from worker.request.payload import OutputCodec, OutputFormat, VideoQuality
from worker.request.settle import CODECS as CODECS_OF_FORMATS
from worker.request.values import Output, VideoRequest

WIDTH, HEIGHT = 160, 96
VIDEOS: list[tuple[OutputFormat, OutputCodec, str]] = [
    ("mp4", "h264", "avc1"),
    ("mp4", "hevc", "hvc1"),
    ("mp4", "av1", "av01"),
    ("webm", "vp9", ""),
    ("webm", "av1", ""),
]
PICTURES: list[tuple[OutputFormat, OutputCodec]] = [("gif", "gif"), ("webp", "webp")]
# Of each codec, as PyAV names its decoder.
DECODERS = {"h264": "h264", "hevc": "hevc", "av1": "libdav1d", "vp9": "vp9"}


def made(folder: Path, output: Output, count: int = 13, fps: int = 16) -> VideoFile:
    path = folder / f"0{FORMATS[output.format].suffix}"
    return encode(
        moving(count), path=path, width=WIDTH, height=HEIGHT, num_frames=count, fps=fps, poster=None, output=output
    )


@pytest.mark.parametrize(("format", "codec", "tag"), VIDEOS)
def test_a_video_has_the_codec_the_rate_the_count_the_size_and_the_colours(
    tmp_path: Path, format: OutputFormat, codec: OutputCodec, tag: str
) -> None:
    video = made(tmp_path, Output(format=format, codec=codec))
    assert (video.format, video.path.suffix) == (FORMATS[format], FORMATS[format].suffix)
    with av.open(str(video.path)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        frames = list(container.decode(stream))
        assert context.name == DECODERS[codec]
        assert not tag or context.codec_tag == tag
        assert (stream.width, stream.height, context.pix_fmt) == (WIDTH, HEIGHT, "yuv420p")
        assert float(stream.average_rate) == pytest.approx(16, abs=0.02)  # WebM counts in milliseconds
        bt709, tv = 1, 1
        assert (context.color_primaries, context.color_trc, context.colorspace) == (bt709, bt709, bt709)
        assert context.color_range == tv
    assert [round(frame.time * 16) for frame in frames] == list(range(13))
    for frame, true in zip(frames, moving(13), strict=True):
        shown = frame.to_ndarray(format="rgb24", src_colorspace="ITU709").astype(float)
        assert np.abs(shown - true).mean() < 6


@pytest.mark.parametrize("fps", [1, 24, 60])
@pytest.mark.parametrize(("format", "codec"), [("mp4", "hevc"), ("mp4", "av1"), ("webm", "vp9")])
def test_the_duration_of_a_video_is_that_of_its_frames(
    tmp_path: Path, format: OutputFormat, codec: OutputCodec, fps: int
) -> None:
    video = made(tmp_path, Output(format=format, codec=codec), count=7, fps=fps)
    with av.open(str(video.path)) as container:
        assert container.duration / av.time_base == pytest.approx(7 / fps, abs=0.0021)
        assert sum(1 for _ in container.decode(video=0)) == 7
        if format == "mp4":
            stream = container.streams.video[0]
            assert stream.average_rate == fps
            assert stream.duration * stream.time_base == Fraction(7, fps)


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_the_index_of_an_mp4_is_at_the_front(tmp_path: Path, codec: OutputCodec) -> None:
    content = made(tmp_path, Output(codec=codec)).path.read_bytes()
    boxes, position = [], 0
    while position < len(content):
        size, name = struct.unpack(">I4s", content[position : position + 8])
        boxes.append(name)
        position += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")


def test_the_index_of_a_webm_is_at_the_front(tmp_path: Path) -> None:
    content = made(tmp_path, Output(format="webm", codec="vp9")).path.read_bytes()
    cues, cluster = b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75"
    # The seek head, which names the id too, comes before both.
    assert 0 < content.rindex(cues) < content.index(cluster)


@pytest.mark.parametrize(("format", "codec"), PICTURES)
@pytest.mark.parametrize("fps", [1, 16, 30, 50])
def test_a_moving_picture_has_every_frame_for_its_time_and_repeats(
    tmp_path: Path, format: OutputFormat, codec: OutputCodec, fps: int
) -> None:
    video = made(tmp_path, Output(format=format, codec=codec), fps=fps)
    with Image.open(video.path) as picture:
        assert (picture.format, picture.size, picture.n_frames) == (format.upper(), (WIDTH, HEIGHT), 13)
        assert picture.info["loop"] == 0
        shown, durations = [], []
        for index in range(13):
            picture.seek(index)
            picture.load()
            durations.append(picture.info["duration"])
            shown.append(np.asarray(picture.convert("RGB")).astype(float))
    tick = 10 if format == "gif" else 1
    assert sum(durations) == pytest.approx(13_000 / fps, abs=tick)
    assert max(durations) - min(durations) <= tick
    for frame, true in zip(shown, moving(13), strict=True):
        assert np.abs(frame - true).mean() < 12


@pytest.mark.parametrize("codec", ["h264", *slow(*(codec for codec in formats.CODECS if codec not in ("h264", "gif")))])
def test_a_better_quality_has_more_bytes(tmp_path: Path, codec: OutputCodec) -> None:
    (format,) = [name for name, codecs in CODECS_OF_FORMATS.items() if codec in codecs][:1]
    sizes = [made(tmp_path, Output(format, codec, quality), count=5).size_bytes for quality in get_args(VideoQuality)]
    assert sizes == sorted(set(sizes))


def test_a_better_quality_of_a_gif_has_more_colours(tmp_path: Path) -> None:
    colours: list[int] = []
    for quality in get_args(VideoQuality):
        with Image.open(made(tmp_path, Output("gif", "gif", quality), count=5).path) as picture:
            shown = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        colours.append(len(np.unique(shown, axis=0)))
    low, medium, high, maximum = colours
    assert low <= 64 < medium <= 128 < high == maximum <= 256


def test_every_format_and_codec_of_the_payload_is_described() -> None:
    assert FORMATS.keys() == CODECS_OF_FORMATS.keys()
    assert formats.CODECS.keys() == {codec for codecs in CODECS_OF_FORMATS.values() for codec in codecs}
    assert {name: each.name for name, each in FORMATS.items()} == {name: name for name in FORMATS}


# --- what this worker's ffmpeg lacks, and what a format cannot show


def test_the_encoders_are_those_of_ffmpeg() -> None:
    assert {codec.encoder for codec in formats.CODECS.values()} <= encoders()
    assert "libx266" not in encoders()
    assert program().is_file()


def test_a_codec_that_ffmpeg_lacks_is_refused_by_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(formats.CODECS["vp9"], encoder="libvpx-vp99")
    monkeypatch.setattr(formats, "CODECS", {**formats.CODECS, "vp9": absent})
    formats.check(Output(), path="output_codec")
    with pytest.raises(Unsupported, match="libvpx-vp99, which makes vp9") as caught:
        formats.check(Output(format="webm", codec="vp9"), path="job_request_params[1].output_codec")
    assert caught.value.path == "job_request_params[1].output_codec"


def _request(**fields: object) -> VideoRequest:
    return parse({"prompt": "a cat", **fields}, default_job_id="j").videos[0]


@pytest.mark.parametrize(
    ("fields", "rate", "note"),
    [
        ({}, 16, None),
        ({"target_fps": 60}, 60, None),
        ({"output_format": "gif"}, 16, None),
        ({"output_format": "gif", "target_fps": 50}, 50, None),
        ({"output_format": "gif", "target_fps": 51}, 50, "target_fps: 51 lowered to 50, the highest rate of a GIF"),
        ({"output_format": "gif", "fps": 60}, 50, "fps: 60 lowered to 50, the highest rate of a GIF"),
        ({"output_format": "webp", "fps": 60}, 60, None),
    ],
)
def test_the_rate_of_the_file(fields: dict[str, object], rate: int, note: str | None) -> None:
    request = _request(**fields)
    assert formats.frame_rate(request.output, request.fps) == rate
    assert formats.notes(request) == (() if note is None else (note,))


def test_a_rate_that_the_format_does_not_show_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fps must be 1 to 50, not 51"):
        made(tmp_path, Output(format="gif", codec="gif"), fps=51)
    assert list(tmp_path.iterdir()) == []
