"""Real encodes read back with PyAV: rate, size, colours, and what is in memory meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.kits.frames import Alive, encoded, gradients, script
from worker.media.ffmpeg import QUEUE_FRAMES

WIDTH, HEIGHT = 64, 48
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
BIG = 256  # a frame of this size is larger than a pipe holds
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("count", "fps"), [(5, 16), (1, 16), (9, 1), (61, 60), (30, 24)])
def test_rate_count_and_size_are_exact(out: Path, count: int, fps: int) -> None:
    video = encoded(gradients(count), out / "0.mp4", num_frames=count, fps=fps)
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
    video = encoded(gradients(5), out / "0.mp4")
    with av.open(str(video.path)) as container:
        context = container.streams.video[0].codec_context
        frame = next(container.decode(video=0))
        bt709, tv = 1, 1  # AVCOL_PRI_BT709 = AVCOL_TRC_BT709 = AVCOL_SPC_BT709; AVCOL_RANGE_MPEG
        assert context.pix_fmt == frame.format.name == "yuv420p"
        assert (context.color_primaries, context.color_trc, context.colorspace) == (bt709, bt709, bt709)
        assert context.color_range == tv
        assert (frame.colorspace, frame.color_range) == (bt709, tv)


def test_x264_ran_at_crf_18(out: Path) -> None:
    assert b" crf=18.0 " in encoded(gradients(5), out / "0.mp4").path.read_bytes()


def test_size_and_hash_are_those_of_the_file(out: Path) -> None:
    video = encoded(gradients(5), out / "0.mp4")
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
    video = encoded(_bars(5), out / "0.mp4", width=BAR_WIDTH * len(BARS))
    np.testing.assert_allclose(_bar_colours(video.path, red=0.2126, blue=0.0722), BARS, atol=4)
    as_bt601 = _bar_colours(video.path, red=0.299, blue=0.114)
    assert np.abs(as_bt601 - BARS).max() > 20, "the bars must be able to tell the matrices apart"


def test_frames_need_not_be_contiguous(out: Path) -> None:
    mirrored = (np.flip(np.ascontiguousarray(np.flip(frame, 1)), 1) for frame in _bars(5))
    video = encoded(mirrored, out / "0.mp4", width=BAR_WIDTH * len(BARS))
    np.testing.assert_allclose(_bar_colours(video.path, red=0.2126, blue=0.0722), BARS, atol=4)


def test_a_list_of_frames_will_do(out: Path) -> None:
    assert encoded(list(gradients(5)), out / "0.mp4").num_frames == 5


def test_an_earlier_file_is_replaced(out: Path) -> None:
    path = out / "0.mp4"
    path.write_bytes(b"earlier")
    video = encoded(gradients(5), path)
    assert path.stat().st_size == video.size_bytes > len(b"earlier")
    assert list(out.iterdir()) == [path]


def test_progress_counts_every_frame(out: Path) -> None:
    told: list[int] = []
    encoded(gradients(5), out / "0.mp4", on_frame=told.append)
    assert sorted(set(told)) == [1, 2, 3, 4, 5]
    assert told == sorted(told)


def test_ffmpeg_reads_while_the_next_frame_is_made(tmp_path: Path, out: Path) -> None:
    received = tmp_path / "received"
    frame_bytes = WIDTH * HEIGHT * 3
    ffmpeg = script(tmp_path, f'head -c {frame_bytes} > "{received}"; cat > /dev/null; echo done > "$out"')

    def frames() -> Iterator[np.ndarray]:
        first, second = gradients(2)
        yield first
        deadline = time.monotonic() + 30
        while not received.exists() or received.stat().st_size < frame_bytes:
            assert time.monotonic() < deadline, "ffmpeg never got the first frame"
            time.sleep(0.01)
        yield second

    encoded(frames(), out / "0.mp4", num_frames=2, ffmpeg=ffmpeg)
    assert received.read_bytes() == next(gradients(2)).tobytes()


def test_few_frames_are_in_memory(out: Path) -> None:
    alive = Alive(lambda index: np.full((BIG, BIG, 3), index, dtype=np.uint8))
    encoded(alive.frames(120), out / "0.mp4", width=BIG, height=BIG, num_frames=120)
    # queued, in the writer's hand, the one before, and the new one
    assert 1 <= alive.most <= QUEUE_FRAMES + 3


def test_nothing_half_written_is_visible(out: Path) -> None:
    seen: set[str] = set()
    video = encoded(
        gradients(40),
        out / "0.mp4",
        num_frames=40,
        poster=out / "0.jpg",
        on_frame=lambda count: seen.update(entry.name for entry in out.iterdir()),
    )
    assert all(name.startswith(".") for name in seen)
    assert sorted(out.iterdir()) == [video.poster, video.path]


def test_poster_shows_the_picture(out: Path) -> None:
    frame = next(_bars(1))
    video = encoded([frame], out / "0.mp4", width=BAR_WIDTH * len(BARS), num_frames=1, poster=out / "0.jpg")
    with Image.open(video.poster) as image:
        centres = np.asarray(image)[HEIGHT // 2, np.arange(len(BARS)) * BAR_WIDTH + BAR_WIDTH // 2]
    np.testing.assert_allclose(centres.astype(float), BARS, atol=6)


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
