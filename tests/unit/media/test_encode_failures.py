"""Encodes that fail, with the real ffmpeg or a script in its place: a typed error, no file, nothing left running."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest

from tests.kits.frames import encoded, gradients, script
from worker.base.errors import Cancelled, EncodeFailed
from worker.media.ffmpeg import QUEUE_FRAMES, WAITS, Waits

WIDTH, HEIGHT = 64, 48
pytestmark = pytest.mark.usefixtures("nothing_left_behind")
BIG = 256  # a frame of this size is larger than a pipe holds


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
        encoded(watched, path, **({"poster": out / "0.jpg"} | options))
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
    frames = gradients(20, width=BIG, height=BIG)
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"):
        ffmpeg = script(tmp_path, body)
        failure = _fails(frames, out, width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=Waits(exit_s=1.0))
    assert failure.code == "encode_failed"
    assert how in str(failure)
    assert "boom" not in str(failure)
    assert "boom: " in caplog.text


def test_real_ffmpeg_that_cannot_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"), pytest.raises(EncodeFailed) as caught:
        encoded(gradients(5), tmp_path / "absent" / "0.mp4")
    assert "No such file" in caplog.text
    assert "absent" not in str(caught.value)


def test_an_ffmpeg_that_writes_nothing(tmp_path: Path, out: Path) -> None:
    failure = _fails(gradients(5), out, ffmpeg=script(tmp_path, "cat > /dev/null"))
    assert "could not be written" in str(failure)


def test_only_the_last_lines_are_logged(tmp_path: Path, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = 'seq -f "line %.0f" 1 5000 >&2; head -c 1000000 /dev/zero | tr "\\0" x >&2; echo >&2; echo end >&2; exit 1'
    with caplog.at_level(logging.ERROR, logger="worker.media.ffmpeg"):
        _fails(gradients(5), out, ffmpeg=script(tmp_path, body))
    assert caplog.text.rstrip().endswith("end")
    assert len(caplog.text) < 20_000


@pytest.mark.parametrize("kind", ["absent", "not executable"])
def test_an_ffmpeg_that_cannot_start(tmp_path: Path, out: Path, kind: str) -> None:
    program = tmp_path / "ffmpeg"
    if kind == "not executable":
        program.write_text("#!/bin/sh\n")
        program.chmod(0o644)
    assert "could not be started" in str(_fails(gradients(5), out, ffmpeg=program))


def test_cancel_while_ffmpeg_hangs(tmp_path: Path, out: Path) -> None:
    made, told = [], []

    def frames() -> Iterator[np.ndarray]:
        for index, frame in enumerate(gradients(50, width=BIG, height=BIG)):
            made.append(index)
            yield frame

    def on_frame(count: int) -> None:
        if count in told:
            raise Cancelled
        told.append(count)

    ffmpeg = script(tmp_path, "sleep 600")
    with pytest.raises(Cancelled):
        encoded(frames(), out / "0.mp4", width=BIG, height=BIG, num_frames=50, on_frame=on_frame, ffmpeg=ffmpeg)
    assert len(made) <= QUEUE_FRAMES + 2
    assert list(out.iterdir()) == []


def test_the_waits() -> None:
    assert Waits(stall_s=120.0, exit_s=5.0) == WAITS


@pytest.mark.parametrize("body", ["exec sleep 600", "sleep 600", "cat > /dev/null; sleep 600", "exec <&-; sleep 600"])
def test_a_hanging_ffmpeg_is_killed(tmp_path: Path, out: Path, body: str) -> None:
    waits = Waits(stall_s=0.2, exit_s=0.2)
    frames = gradients(20, width=BIG, height=BIG)
    ffmpeg = script(tmp_path, body)
    failure = _fails(frames, out, width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=waits)
    assert ("its input closed" if "<&-" in body else "stopped responding") in str(failure)


@pytest.mark.slow
def test_an_ffmpeg_that_computes_is_waited_for(tmp_path: Path, out: Path) -> None:
    real = imageio_ffmpeg.get_ffmpeg_exe()
    ffmpeg = script(tmp_path, f'i=0; while [ $i -lt 1500000 ]; do i=$((i+1)); done; exec {real} "$@"')
    frames = gradients(20, width=BIG, height=BIG)
    video = encoded(frames, out / "0.mp4", width=BIG, height=BIG, num_frames=20, ffmpeg=ffmpeg, waits=Waits(0.2, 5.0))
    assert video.num_frames == 20


@pytest.mark.parametrize("at", [0, 1, 7, 20])
@pytest.mark.parametrize("program", ["real", "hanging"])
def test_what_the_iterator_raises_passes_unchanged(tmp_path: Path, out: Path, at: int, program: str) -> None:
    if program == "hanging" and at > QUEUE_FRAMES:
        at = QUEUE_FRAMES
    raised = Cancelled()

    def frames() -> Iterator[np.ndarray]:
        yield from gradients(at, width=BIG, height=BIG)
        raise raised

    ffmpeg = None if program == "real" else script(tmp_path, "sleep 600")
    options = {"width": BIG, "height": BIG, "num_frames": 21, "poster": out / "0.jpg", "ffmpeg": ffmpeg}
    with pytest.raises(Cancelled) as caught:
        encoded(frames(), out / "0.mp4", **options)
    assert caught.value is raised
    assert list(out.iterdir()) == []


def test_an_os_error_of_the_iterator_is_not_ours(out: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from gradients(2)
        raise OSError("the iterator's own")

    with pytest.raises(OSError, match="the iterator's own"):
        encoded(frames(), out / "0.mp4")


@pytest.mark.parametrize(("made", "expected"), [(4, 5), (6, 5), (0, 1)])
def test_a_wrong_number_of_frames(out: Path, made: int, expected: int) -> None:
    failure = _fails(gradients(made), out, num_frames=expected)
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
    failure = _fails(iter([*gradients(2), wrong, *gradients(2)]), out)
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
    watched = _Watched(gradients(5))
    with pytest.raises(ValueError, match=message):
        encoded(watched, out / "0.mp4", **options)
    assert watched.closed
    assert list(out.iterdir()) == []


def test_a_folder_that_is_a_file(out: Path) -> None:
    (out / "file").touch()
    watched = _Watched(gradients(5))
    with pytest.raises(EncodeFailed):
        encoded(watched, out / "file" / "0.mp4")
    assert watched.closed


def test_a_poster_that_cannot_be_written(out: Path) -> None:
    failure = _fails(gradients(5), out, poster=out / "absent" / "0.jpg")
    assert "could not be written" in str(failure)


def test_iterator_is_closed_after_success(out: Path) -> None:
    watched = _Watched(gradients(5))
    encoded(watched, out / "0.mp4")
    assert watched.closed
