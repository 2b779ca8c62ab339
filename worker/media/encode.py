"""Frames to an MP4 through a pipe to ffmpeg, and the poster beside it.

H.264 at CRF 18, yuv420p, tagged and converted as BT.709 in TV range, index at the front, exact frame rate and frame
count, never resized. ffmpeg compresses while the caller's iterator makes the next frame, and only a handful of frames
is in memory at any time. Whatever fails, no file, process, thread or descriptor is left behind.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np

from worker.base.errors import EncodeFailed
from worker.media.formats import MP4, Format
from worker.media.poster import PosterPicker

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

logger = logging.getLogger(__name__)

MAX_FPS = 60
CRF = 18
# 81 frames of 1280x720 at this CRF on two cores (benchmarks.encode --presets): veryfast 1.7 s, 1.5 MB, SSIM 0.989; fast
# 2.9 s, 2.3 MB, 0.994; medium 2.9 s, 1.4 MB, 0.996; slow 3.6 s, 1.2 MB, 0.997. That time runs beside the decode, which
# takes longer on most GPUs, so it costs nothing up to medium; slow would make the worker wait at the end.
PRESET = "medium"
# A container sees every core of its host. Beyond a few threads x264 gains nothing at these sizes (on two cores 2 to 8
# take the same time), while each holds frames of its own. The bytes do not depend on them.
MAX_THREADS = 8
QUEUE_FRAMES = 4  # one step of the VAE, so that it can begin the next at once
_POLL_S = 0.5
_LOG_LINES = 20
_LOG_LINE_BYTES = 500


@dataclass(frozen=True, slots=True)
class VideoFile:
    """An encoded video on the local disk, at `path` in `format`.

    `poster` is a JPEG and `frames` a ZIP of the frames as PNG, None where none was asked for.
    """

    path: Path
    poster: Path | None
    width: int
    height: int
    num_frames: int
    fps: int
    size_bytes: int
    sha256: str
    frames: Path | None = None
    format: Format = MP4

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.fps


@dataclass(frozen=True, slots=True)
class Waits:
    """How long an ffmpeg that takes no frame, or does not end, is waited for; and one that was to end at once."""

    stall_s: float = 120.0
    exit_s: float = 5.0


WAITS = Waits()


def encode(
    frames: Iterable[Frame],
    *,
    path: Path,
    width: int,
    height: int,
    num_frames: int,
    fps: int,
    poster: Path | None,
    on_frame: Callable[[int], None] | None = None,
    ffmpeg: Path | None = None,
    waits: Waits = WAITS,
) -> VideoFile:
    """Encode exactly `num_frames` frames, each uint8 [height, width, 3] RGB, into the MP4 at `path`.

    A frame must not be written again once it was handed over. `path` and `poster` appear only when complete, in
    folders that must exist; `poster` is a JPEG of the first sharp frame, None for none. `on_frame` is called with the
    number of frames handed over so far, after each and, with the same number, twice a second while ffmpeg is waited
    for. It may raise to stop the encode. `ffmpeg` is the program to run, imageio-ffmpeg's own by default.

    Raises EncodeFailed where ffmpeg cannot start, dies or hangs, where the frames are not as promised, and where the
    files cannot be written; ffmpeg's last lines go to the log. ValueError for an odd size, or an fps outside 1 to 60.
    Whatever the iterator or `on_frame` raises passes through unchanged. The iterator is closed in every case.
    """
    stamp = secrets.token_hex(4)
    partial = path.with_name(f".{path.name}.{stamp}.partial")
    poster_partial = poster.with_name(f".{poster.name}.{stamp}.partial") if poster is not None else None
    picker = PosterPicker() if poster is not None else None
    try:
        _check_format(width=width, height=height, num_frames=num_frames, fps=fps)
        command = _command(ffmpeg, partial, width=width, height=height, fps=fps)
        with closing(_Ffmpeg(command, waits)) as process:
            _feed(frames, process, shape=(height, width, 3), num_frames=num_frames, on_frame=on_frame, picker=picker)
        try:
            size_bytes, sha256 = _measure(partial)
            if picker is not None and poster is not None and poster_partial is not None:
                picker.save(poster_partial)
                poster_partial.replace(poster)
            partial.replace(path)
        except OSError as failure:
            raise EncodeFailed("the finished video could not be written to the worker's disk; try again") from failure
    finally:
        for leftover in (partial, poster_partial):
            if leftover is not None:
                with suppress(OSError):
                    leftover.unlink(missing_ok=True)
        close = getattr(frames, "close", None)
        if close is not None:
            close()
    return VideoFile(path, poster, width, height, num_frames, fps, size_bytes, sha256)


def _check_format(*, width: int, height: int, num_frames: int, fps: int) -> None:
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise ValueError(f"width and height must be even (yuv420p), not {width}x{height}")
    if not 1 <= fps <= MAX_FPS:
        raise ValueError(f"fps must be 1 to {MAX_FPS}, not {fps}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")


def _command(ffmpeg: Path | None, output: Path, *, width: int, height: int, fps: int) -> list[str]:
    if ffmpeg is None:
        try:
            ffmpeg = Path(imageio_ffmpeg.get_ffmpeg_exe())
        except RuntimeError as failure:
            raise EncodeFailed("the worker has no video encoder") from failure
    # The tags must be set on the frames: as output options ffmpeg ignores -color_primaries and -color_trc.
    filters = (
        "scale=flags=accurate_rnd:out_color_matrix=bt709:out_range=tv,format=yuv420p,"
        "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    )
    threads = str(min(os.cpu_count() or 1, MAX_THREADS))
    return [
        str(ffmpeg),
        *("-hide_banner", "-nostats", "-loglevel", "warning", "-y", "-filter_threads", threads),
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}", "-framerate", str(fps)),
        *("-i", "pipe:0", "-an", "-vf", filters),
        *("-c:v", "libx264", "-preset", PRESET, "-crf", str(CRF), "-threads", threads),
        *("-fps_mode", "passthrough", "-movflags", "+faststart", "-f", "mp4", f"file:{output}"),
    ]


def _feed(
    frames: Iterable[Frame],
    process: _Ffmpeg,
    *,
    shape: tuple[int, int, int],
    num_frames: int,
    on_frame: Callable[[int], None] | None,
    picker: PosterPicker | None,
) -> None:
    """Hand every frame to ffmpeg and wait until it has written the file."""
    count = 0

    def report() -> None:
        if on_frame is not None:
            on_frame(count)

    for frame in frames:
        if count == num_frames:
            raise EncodeFailed(f"more than the expected {num_frames} frames were generated")
        if frame.shape != shape or frame.dtype != np.uint8:
            raise EncodeFailed(f"frame {count} is {frame.dtype} {frame.shape}, not uint8 {shape}")
        process.put(np.ascontiguousarray(frame), while_waiting=report)
        if picker is not None:
            picker.look(frame)
        count += 1
        report()
    if count != num_frames:
        raise EncodeFailed(f"{count} frames were generated where {num_frames} were expected")
    process.finish(while_waiting=report)


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


class _Ffmpeg:
    """A running ffmpeg: one thread writes queued frames to it, one keeps the last lines that it logs.

    `close` must be called in every case; it ends the process, if it still runs, and both threads.
    """

    def __init__(self, command: list[str], waits: Waits) -> None:
        self._waits = waits
        try:
            # A session of its own: Ctrl-C on the worker must not end the encode of a job that is still drained, and
            # a wrapper script is killed together with its children.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as failure:
            raise EncodeFailed("the video encoder could not be started; try again") from failure
        self._queue: queue.Queue[Frame | None] = queue.Queue(QUEUE_FRAMES)
        self._pipe_broke = threading.Event()
        self._last_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._writer = threading.Thread(target=self._write, name="ffmpeg-stdin", daemon=True)
        self._reader = threading.Thread(target=self._read, name="ffmpeg-stderr", daemon=True)
        self._writer.start()
        self._reader.start()

    def put(self, frame: Frame | None, *, while_waiting: Callable[[], None]) -> None:
        """Queue a frame, or None for the end of input."""
        deadline = time.monotonic() + self._waits.stall_s
        while not self._pipe_broke.is_set():
            try:
                self._queue.put(frame, timeout=_POLL_S)
                return
            except queue.Full:
                while_waiting()
                self._check_stall(deadline)
        raise self._death()

    def finish(self, *, while_waiting: Callable[[], None]) -> None:
        self.put(None, while_waiting=while_waiting)
        deadline = time.monotonic() + self._waits.stall_s
        while True:
            try:
                returncode = self._process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                while_waiting()
                self._check_stall(deadline)
        self._writer.join(self._waits.exit_s)
        if returncode != 0 or self._pipe_broke.is_set() or self._writer.is_alive():
            raise self._death()

    def close(self) -> None:
        if self._process.returncode != 0:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        # The writer may wait for a frame. Where the queue is full it does not: then it is writing, to a broken pipe.
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        self._writer.join()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        try:
            while (frame := self._queue.get()) is not None:
                stdin.write(frame.data)
            stdin.close()
        except OSError:
            self._pipe_broke.set()

    def _read(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while line := stderr.readline(_LOG_LINE_BYTES):
            self._last_lines.append(line.decode("utf-8", "replace").rstrip())

    def _check_stall(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self._log_last_lines(f"takes nothing for {self._waits.stall_s:.0f} s")
            raise EncodeFailed("the video encoder stopped responding; try again")

    def _death(self) -> EncodeFailed:
        try:
            returncode = self._process.wait(self._waits.exit_s)
            how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        except subprocess.TimeoutExpired:
            how = "its input closed"
        self._reader.join(self._waits.exit_s)
        self._log_last_lines(f"ended with {how}")
        return EncodeFailed(f"the video encoder ended early, with {how}; try again")

    def _log_last_lines(self, what: str) -> None:
        logger.error("ffmpeg %s; its last lines:\n%s", what, "\n".join(self._last_lines) or "(none)")
