"""Real encodes read back with PyAV, and ffmpegs that misbehave."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from PIL import Image

from worker.base.errors import Cancelled, EncodeFailed
from worker.media import VideoFile
from worker.media.encode import encode
from worker.media.ffmpeg import QUEUE_FRAMES, WAITS, Waits
from worker.media.poster import POSTER_WINDOW_FRAMES

WIDTH, HEIGHT = 64, 48
BIG = 256  # a frame of this size is larger than a pipe holds
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No encode, good or bad, leaves a thread, a process (zombies count) or a descriptor behind."""
    process = psutil.Process()
    threads, descriptors = set(threading.enumerate()), process.num_fds()
    children = set(process.children(recursive=True))  # another test's fork server may be among them
    yield
    assert set(threading.enumerate()) <= threads  # those of earlier tests may end meanwhile
    assert set(process.children(recursive=True)) <= children
    assert process.num_fds() <= descriptors


def _moving(count: int, *, width: int = WIDTH, height: int = HEIGHT) -> Iterator[np.ndarray]:
    rows, columns = np.mgrid[0:height, 0:width]
    for index in range(count):
        yield np.stack([columns * 3 + index, rows * 4, columns + rows], -1).astype(np.uint8)


def _run(frames: Any, path: Path, **options: Any) -> VideoFile:
    defaults = {"width": WIDTH, "height": HEIGHT, "num_frames": 5, "fps": 16, "poster": None}
    return encode(frames, path=path, **(defaults | options))


def script(folder: Path, body: str) -> Path:
    """A program to run as ffmpeg; `$out` is the file that it was told to write."""
    program = folder / "ffmpeg"
    program.write_text(f'#!/bin/sh\nfor last in "$@"; do out="${{last#file:}}"; done\n{body}\n')
    program.chmod(0o755)
    return program


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


# --- the file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "fps"), [(5, 16), (1, 16), (9, 1), (61, 60), (30, 24)])
def test_rate_count_and_size_are_exact(out: Path, count: int, fps: int) -> None:
    video = _run(_moving(count), out / "0.mp4", num_frames=count, fps=fps)
    with av.open(str(video.path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert (stream.width, stream.height) == (WIDTH, HEIGHT)
        assert stream.average_rate == fps
        assert stream.frames == count
        assert stream.duration * stream.time_base == Fraction(count, fps)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [Fraction(index, fps) for index in range(count)]
    assert (video.width, video.height, video.num_frames, video.fps) == (WIDTH, HEIGHT, count, fps)
    assert video.duration_seconds == count / fps


def test_format_and_colour_tags(out: Path) -> None:
    video = _run(_moving(5), out / "0.mp4")
    with av.open(str(video.path)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        bt709, tv = 1, 1  # AVCOL_PRI_BT709 = AVCOL_TRC_BT709 = AVCOL_SPC_BT709; AVCOL_RANGE_MPEG
        assert context.pix_fmt == frame.format.name == "yuv420p"
        assert (context.color_primaries, context.color_trc, context.colorspace) == (bt709, bt709, bt709)
        assert context.color_range == tv
        assert (frame.colorspace, frame.color_range) == (bt709, tv)


def test_x264_ran_at_crf_18(out: Path) -> None:
    assert b" crf=18.0 " in _run(_moving(5), out / "0.mp4").path.read_bytes()


def test_size_and_hash_are_those_of_the_file(out: Path) -> None:
    video = _run(_moving(5), out / "0.mp4")
    content = video.path.read_bytes()
    assert (video.size_bytes, video.sha256) == (len(content), hashlib.sha256(content).hexdigest())


BARS = [(255, 255, 255), (255, 255, 0), (0, 255, 255), (0, 255, 0), (255, 0, 255), (255, 0, 0), (0, 0, 255), (0, 0, 0)]
BAR_WIDTH = 32


def _bars(count: int) -> Iterator[np.ndarray]:
    bars = np.repeat(np.array(BARS, dtype=np.uint8), BAR_WIDTH, axis=0)
    for _ in range(count):
        yield np.broadcast_to(bars, (HEIGHT, *bars.shape)).copy()


def _bar_colours(path: Path, *, red: float, blue: float) -> np.ndarray:
    """The centre of each bar, converted by hand from TV range with the luma weights of red and blue."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    luma, chroma_b, chroma_r = (
        np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width].astype(float)
        for plane in frame.planes
    )
    column = np.arange(len(BARS)) * BAR_WIDTH + BAR_WIDTH // 2
    y = (luma[HEIGHT // 2, column] - 16) / 219
    cb = (chroma_b[HEIGHT // 4, column // 2] - 128) / 224
    cr = (chroma_r[HEIGHT // 4, column // 2] - 128) / 224
    r, b = y + 2 * (1 - red) * cr, y + 2 * (1 - blue) * cb
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.stack([r, g, b], -1) * 255


def test_colours_are_bt709(out: Path) -> None:
    video = _run(_bars(5), out / "0.mp4", width=BAR_WIDTH * len(BARS))
    np.testing.assert_allclose(_bar_colours(video.path, red=0.2126, blue=0.0722), BARS, atol=4)
    as_bt601 = _bar_colours(video.path, red=0.299, blue=0.114)
    assert np.abs(as_bt601 - BARS).max() > 20, "the bars must be able to tell the matrices apart"


def test_frames_need_not_be_contiguous(out: Path) -> None:
    mirrored = (np.flip(np.ascontiguousarray(np.flip(frame, 1)), 1) for frame in _bars(5))
    video = _run(mirrored, out / "0.mp4", width=BAR_WIDTH * len(BARS))
    np.testing.assert_allclose(_bar_colours(video.path, red=0.2126, blue=0.0722), BARS, atol=4)


def test_a_list_of_frames_will_do(out: Path) -> None:
    assert _run(list(_moving(5)), out / "0.mp4").num_frames == 5


def test_an_earlier_file_is_replaced(out: Path) -> None:
    path = out / "0.mp4"
    path.write_bytes(b"earlier")
    video = _run(_moving(5), path)
    assert path.stat().st_size == video.size_bytes > len(b"earlier")
    assert list(out.iterdir()) == [path]


# --- the stream -------------------------------------------------------------------------------------------------


def test_progress_counts_every_frame(out: Path) -> None:
    told: list[int] = []
    _run(_moving(5), out / "0.mp4", on_frame=told.append)
    assert sorted(set(told)) == [1, 2, 3, 4, 5]
    assert told == sorted(told)


def test_ffmpeg_reads_while_the_next_frame_is_made(tmp_path: Path, out: Path) -> None:
    received = tmp_path / "received"
    frame_bytes = WIDTH * HEIGHT * 3
    ffmpeg = script(tmp_path, f'head -c {frame_bytes} > "{received}"; cat > /dev/null; echo done > "$out"')

    def frames() -> Iterator[np.ndarray]:
        first, second = _moving(2)
        yield first
        deadline = time.monotonic() + 30
        while not received.exists() or received.stat().st_size < frame_bytes:
            assert time.monotonic() < deadline, "ffmpeg never got the first frame"
            time.sleep(0.01)
        yield second

    _run(frames(), out / "0.mp4", num_frames=2, ffmpeg=ffmpeg)
    assert received.read_bytes() == next(_moving(2)).tobytes()


class Alive:
    """Hands frames out and counts how many of them are in memory at once."""

    def __init__(self, make: Callable[[int], np.ndarray]) -> None:
        self._make = make
        self._alive: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self.most = 0

    def frames(self, count: int) -> Iterator[np.ndarray]:
        for index in range(count):
            frame = self._make(index)
            self._alive[index] = frame
            self.most = max(self.most, len(self._alive))
            yield frame
            del frame


def test_few_frames_are_in_memory(out: Path) -> None:
    alive = Alive(lambda index: np.full((BIG, BIG, 3), index, dtype=np.uint8))
    _run(alive.frames(120), out / "0.mp4", width=BIG, height=BIG, num_frames=120)
    # queued, in the writer's hand, the one before, and the new one
    assert 1 <= alive.most <= QUEUE_FRAMES + 3


def test_the_poster_keeps_a_bounded_number_of_frames(out: Path) -> None:
    alive = Alive(lambda index: _texture(0.5 + min(index, 40) / 80, size=BIG))
    _run(alive.frames(80), out / "0.mp4", width=BIG, height=BIG, num_frames=80, poster=out / "0.jpg")
    assert alive.most <= QUEUE_FRAMES + 3 + POSTER_WINDOW_FRAMES


def test_nothing_half_written_is_visible(out: Path) -> None:
    seen: set[str] = set()
    video = _run(
        _moving(40),
        out / "0.mp4",
        num_frames=40,
        poster=out / "0.jpg",
        on_frame=lambda count: seen.update(entry.name for entry in out.iterdir()),
    )
    assert all(name.startswith(".") for name in seen)
    assert sorted(out.iterdir()) == [video.poster, video.path]


# --- what fails -------------------------------------------------------------------------------------------------


class _Watched:
    """A generator of frames that tells whether it was closed."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        self._frames = frames
        self.closed = False

    def __iter__(self) -> Iterator[np.ndarray]:
        return self._frames

    def close(self) -> None:
        self.closed = True


def _fails(frames: Iterator[np.ndarray], out: Path, **options: Any) -> EncodeFailed:
    """Run an encode that must fail cleanly: the error, no file, the iterator closed, an earlier file untouched."""
    path = out / "0.mp4"
    path.write_bytes(b"earlier")
    watched = _Watched(frames)
    with pytest.raises(EncodeFailed) as caught:
        _run(watched, path, **({"poster": out / "0.jpg"} | options))
    assert watched.closed
    assert list(out.iterdir()) == [path]
    assert path.read_bytes() == b"earlier"
    assert str(out.parent) not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ('echo half > "$out"; head -c 500000 > /dev/null; echo "boom: disk full" >&2; exit 3', "exit code 3"),
        ('cat > /dev/null; echo "boom: at the end" >&2; exit 1', "exit code 1"),
        ('echo "boom: killed" >&2; kill -9 $$', "signal 9"),
        ('echo "boom: all is well" >&2; exit 0', "exit code 0"),
        ('sleep 600 & echo "boom: with a child" >&2; exit 4', "exit code 4"),
    ],
)
def test_a_dying_ffmpeg(
    tmp_path: Path,
    out: Path,
    caplog: pytest.LogCaptureFixture,
    body: str,
    how: str,
) -> None:
    frames = _moving(20, width=BIG, height=BIG)
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"):
        ffmpeg = script(tmp_path, body)
        failure = _fails(frames, out, width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=Waits(exit_s=1.0))
    assert failure.code == "encode_failed"
    assert how in str(failure)
    assert "boom" not in str(failure)
    assert "boom: " in caplog.text


def test_real_ffmpeg_that_cannot_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"), pytest.raises(EncodeFailed) as caught:
        _run(_moving(5), tmp_path / "absent" / "0.mp4")
    assert "No such file" in caplog.text
    assert "absent" not in str(caught.value)


def test_an_ffmpeg_that_writes_nothing(tmp_path: Path, out: Path) -> None:
    failure = _fails(_moving(5), out, ffmpeg=script(tmp_path, "cat > /dev/null"))
    assert "could not be written" in str(failure)


def test_only_the_last_lines_are_logged(tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = 'seq -f "line %.0f" 1 5000 >&2; head -c 1000000 /dev/zero | tr "\\0" x >&2; echo >&2; echo end >&2; exit 1'
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"):
        _fails(_moving(5), out, ffmpeg=script(tmp_path, body))
    assert caplog.text.rstrip().endswith("end")
    assert len(caplog.text) < 20_000


@pytest.mark.parametrize("kind", ["absent", "not executable"])
def test_an_ffmpeg_that_cannot_start(tmp_path: Path, out: Path, kind: str) -> None:
    program = tmp_path / "ffmpeg"
    if kind == "not executable":
        program.write_text("#!/bin/sh\n")
        program.chmod(0o644)
    assert "could not be started" in str(_fails(_moving(5), out, ffmpeg=program))


def test_cancel_while_ffmpeg_hangs(tmp_path: Path, out: Path) -> None:
    made, told = [], []

    def frames() -> Iterator[np.ndarray]:
        for index, frame in enumerate(_moving(50, width=BIG, height=BIG)):
            made.append(index)
            yield frame

    def on_frame(count: int) -> None:
        if count in told:
            raise Cancelled
        told.append(count)

    ffmpeg = script(tmp_path, "sleep 600")
    with pytest.raises(Cancelled):
        _run(frames(), out / "0.mp4", width=BIG, height=BIG, num_frames=50, on_frame=on_frame, ffmpeg=ffmpeg)
    assert len(made) <= QUEUE_FRAMES + 2
    assert list(out.iterdir()) == []


def test_the_waits() -> None:
    assert Waits(stall_s=120.0, exit_s=5.0) == WAITS


@pytest.mark.parametrize("body", ["exec sleep 600", "sleep 600", "cat > /dev/null; sleep 600", "exec <&-; sleep 600"])
def test_a_hanging_ffmpeg_is_killed(tmp_path: Path, out: Path, body: str) -> None:
    waits = Waits(stall_s=0.2, exit_s=0.2)
    frames = _moving(20, width=BIG, height=BIG)
    ffmpeg = script(tmp_path, body)
    failure = _fails(frames, out, width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=waits)
    assert ("its input closed" if "<&-" in body else "stopped responding") in str(failure)


@pytest.mark.slow
def test_an_ffmpeg_that_computes_is_waited_for(tmp_path: Path, out: Path) -> None:
    real = imageio_ffmpeg.get_ffmpeg_exe()
    ffmpeg = script(tmp_path, f'i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done; exec {real} "$@"')
    frames = _moving(20, width=BIG, height=BIG)
    video = _run(frames, out / "0.mp4", width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=Waits(0.2, 5.0))
    assert video.num_frames == 20


@pytest.mark.parametrize("at", [0, 1, 7, 20])
@pytest.mark.parametrize("program", ["real", "hanging"])
def test_what_the_iterator_raises_passes_unchanged(tmp_path: Path, out: Path, at: int, program: str) -> None:
    if program == "hanging" and at > QUEUE_FRAMES:
        at = QUEUE_FRAMES
    raised = Cancelled()

    def frames() -> Iterator[np.ndarray]:
        yield from _moving(at, width=BIG, height=BIG)
        raise raised

    ffmpeg = None if program == "real" else script(tmp_path, "sleep 600")
    options = {"width": BIG, "height": BIG, "num_frames": 21, "poster": out / "0.jpg", "ffmpeg": ffmpeg}
    with pytest.raises(Cancelled) as caught:
        _run(frames(), out / "0.mp4", **options)
    assert caught.value is raised
    assert list(out.iterdir()) == []


def test_an_os_error_of_the_iterator_is_not_ours(out: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from _moving(2)
        raise OSError("the iterator's own")

    with pytest.raises(OSError, match="the iterator's own"):
        _run(frames(), out / "0.mp4")


@pytest.mark.parametrize(("made", "expected"), [(4, 5), (6, 5), (0, 1)])
def test_a_wrong_number_of_frames(out: Path, made: int, expected: int) -> None:
    failure = _fails(_moving(made), out, num_frames=expected)
    assert f"{expected}" in str(failure)
    assert "frames were generated" in str(failure)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((HEIGHT, WIDTH + 2, 3), np.uint8),
        np.zeros((WIDTH, HEIGHT, 3), np.uint8),
        np.zeros((HEIGHT, WIDTH, 4), np.uint8),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.float32),
    ],
    ids=lambda frame: f"{frame.dtype} {frame.shape}",
)
def test_a_wrong_frame(out: Path, wrong: np.ndarray) -> None:
    failure = _fails(iter([*_moving(2), wrong, *_moving(2)]), out)
    assert "frame 2 is" in str(failure)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 63}, "even"),
        ({"height": 47}, "even"),
        ({"width": 0}, "even"),
        ({"fps": 0}, "fps must be 1 to 60"),
        ({"fps": 61}, "fps must be 1 to 60"),
        ({"num_frames": 0}, "num_frames"),
    ],
)
def test_formats_that_cannot_be_are_refused(out: Path, options: dict[str, int], message: str) -> None:
    watched = _Watched(_moving(5))
    with pytest.raises(ValueError, match=message):
        _run(watched, out / "0.mp4", **options)
    assert watched.closed
    assert list(out.iterdir()) == []


def test_iterator_is_closed_after_success(out: Path) -> None:
    watched = _Watched(_moving(5))
    _run(watched, out / "0.mp4")
    assert watched.closed


# --- the poster -------------------------------------------------------------------------------------------------


def _texture(contrast: float, *, level: int = 128, size: int | None = None) -> np.ndarray:
    """Squares about a grey level; their sharpness grows with the square of the contrast (0 to 1)."""
    height, width = size or HEIGHT, size or WIDTH
    squares = np.random.default_rng(3).uniform(-100, 100, (height // 8, width // 8, 1))
    return np.clip(level + contrast * squares.repeat(8, 0).repeat(8, 1).repeat(3, 2), 0, 255).astype(np.uint8)


def _marked(contrasts: list[float], *, level: int = 128) -> list[np.ndarray]:
    """Textures that can be told apart by a colour of their own in the red channel."""
    frames = []
    for index, contrast in enumerate(contrasts):
        frame = _texture(contrast, level=level)
        frame[:12, :12] = (10 * index, 128, 128)
        frames.append(frame)
    return frames


def _poster_index(frames: list[np.ndarray], out: Path) -> int:
    video = _run(frames, out / "0.mp4", num_frames=len(frames), poster=out / "0.jpg")
    assert video.poster == out / "0.jpg"
    with Image.open(video.poster) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (WIDTH, HEIGHT))
        red = np.asarray(image)[2:10, 2:10, 0].mean()
    return round(red / 10)


@pytest.mark.parametrize(
    ("contrasts", "chosen"),
    [
        ([0.9, 0.9, 0.9], 0),
        ([0.1, 0.2, 0.9, 0.9], 2),
        ([0.1, 0.9**0.5 * 0.9, 0.9], 1),
        ([0.1, 0.7**0.5 * 0.9, 0.9], 2),
        ([0.1, 0.9, 0.5, 0.2], 1),
        ([0.2] * (POSTER_WINDOW_FRAMES - 1) + [0.9], POSTER_WINDOW_FRAMES - 1),
        ([0.2] * POSTER_WINDOW_FRAMES + [0.9], 0),
        ([0.0] * 5, 0),
        ([0.5], 0),
    ],
)
def test_poster_is_the_first_sharp_frame(out: Path, contrasts: list[float], chosen: int) -> None:
    assert _poster_index(_marked(contrasts), out) == chosen


def test_near_black_frames_are_passed_over(out: Path) -> None:
    frames = _marked([0.9, 0.9, 0.9])
    for dark in frames[:2]:
        dark //= 16
    frames[2] = np.full_like(frames[2], 20)
    assert _poster_index(frames, out) == 2


def test_an_all_black_video_has_a_black_poster(out: Path) -> None:
    assert _poster_index([np.zeros((HEIGHT, WIDTH, 3), np.uint8)] * 5, out) == 0


def test_poster_shows_the_picture(out: Path) -> None:
    frame = next(_bars(1))
    video = _run([frame], out / "0.mp4", width=BAR_WIDTH * len(BARS), num_frames=1, poster=out / "0.jpg")
    with Image.open(video.poster) as image:
        centres = np.asarray(image)[HEIGHT // 2, np.arange(len(BARS)) * BAR_WIDTH + BAR_WIDTH // 2]
    np.testing.assert_allclose(centres.astype(float), BARS, atol=6)


def test_no_poster_unless_asked_for(out: Path) -> None:
    video = _run(_moving(5), out / "0.mp4")
    assert video.poster is None
    assert list(out.iterdir()) == [video.path]


def test_a_folder_that_is_a_file(out: Path) -> None:
    (out / "file").touch()
    watched = _Watched(_moving(5))
    with pytest.raises(EncodeFailed):
        _run(watched, out / "file" / "0.mp4")
    assert watched.closed


def test_a_poster_that_cannot_be_written(out: Path) -> None:
    failure = _fails(_moving(5), out, poster=out / "absent" / "0.jpg")
    assert "could not be written" in str(failure)


# --- the benchmark and the module -----------------------------------------------------------------------------------


def test_torch_is_not_imported() -> None:
    code = "import sys, worker.media.encode; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=REPOSITORY)


@pytest.mark.slow  # four processes, each of which imports torch; test_few_frames_are_in_memory holds the bound
def test_the_benchmark_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.encode", "--quick", "--output", str(tmp_path)]
    answer = subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert "| streamed | 9 |" in answer.stdout
    (written,) = tmp_path.glob("encode-*.json")
    result = json.loads(written.read_text())
    assert [(run["way"], run["num_frames"]) for run in result["medians"]] == [
        ("streamed", 5),
        ("streamed", 9),
        ("whole", 5),
    ]
    streamed, _, whole = result["medians"]
    assert streamed["size_bytes"] == whole["size_bytes"] > 0
    assert streamed["peak_mib"] > streamed["before_mib"] > 0
