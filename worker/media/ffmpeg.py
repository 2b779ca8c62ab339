"""ffmpeg as a child process that takes frames: where it is, what it can encode, and how it is fed and ended."""

from __future__ import annotations

import functools
import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
import psutil

from worker.base.errors import EncodeFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

logger = logging.getLogger(__name__)

# A container sees every core of its host. Beyond a few threads the encoders gain nothing at these sizes (x264 takes the
# same time with 2 to 8 on two cores), while each holds frames of its own. The bytes of x264 do not depend on them.
MAX_THREADS = 8
QUEUE_FRAMES = 4  # one step of the VAE, so that it can begin the next at once
_POLL_S = 0.5
_PROBE_S = 30.0
_LOG_LINES = 20
_LOG_LINE_BYTES = 500


@dataclass(frozen=True, slots=True)
class Waits:
    """How long an ffmpeg that takes no frame, or does not end, is waited for while it computes nothing either; and one
    that was to end at once.

    A GIF is computed when its last frame is known, which may take minutes.
    """

    stall_s: float = 120.0
    exit_s: float = 5.0


WAITS = Waits()


def program() -> Path:
    """imageio-ffmpeg's own ffmpeg. Raises EncodeFailed where there is none."""
    try:
        return Path(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as failure:
        raise EncodeFailed("the worker has no video encoder") from failure


def threads() -> int:
    """How many threads one ffmpeg may use."""
    return min(os.cpu_count() or 1, MAX_THREADS)


def raw_input(width: int, height: int, fps: int) -> list[str]:
    """The arguments by which ffmpeg reads RGB frames from its standard input."""
    size = f"{width}x{height}"
    return [
        *("-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", size, "-framerate", str(fps), "-i", "pipe:0"),
    ]


@functools.cache
def encoders() -> frozenset[str]:
    """The names of the encoders that `program` has; asked once. Raises EncodeFailed where it cannot run."""
    command = [str(program()), "-hide_banner", "-loglevel", "error", "-encoders"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PROBE_S).stdout
    except (OSError, subprocess.SubprocessError) as failure:
        raise EncodeFailed("the video encoder could not be started; try again") from failure
    rows = listed.partition("------")[2].splitlines()
    return frozenset(row.split()[1] for row in rows if len(row.split()) > 1)


class Ffmpeg:
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
        # When it last took a frame or was seen to have computed, and its seconds of CPU time by then.
        self._worked = (time.monotonic(), 0.0)
        self._queue: queue.Queue[Frame | None] = queue.Queue(QUEUE_FRAMES)
        self._pipe_broke = threading.Event()
        self._last_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._writer = threading.Thread(target=self._write, name="ffmpeg-stdin", daemon=True)
        self._reader = threading.Thread(target=self._read, name="ffmpeg-stderr", daemon=True)
        self._writer.start()
        self._reader.start()

    def put(self, frame: Frame | None, *, while_waiting: Callable[[], None]) -> None:
        """Queue a frame, or None for the end of input."""
        self._worked = (time.monotonic(), self._computed_s())
        while not self._pipe_broke.is_set():
            try:
                self._queue.put(frame, timeout=_POLL_S)
                return
            except queue.Full:
                while_waiting()
                self._check_stall()
        raise self._death()

    def finish(self, *, while_waiting: Callable[[], None]) -> None:
        self.put(None, while_waiting=while_waiting)
        self._worked = (time.monotonic(), self._computed_s())
        while True:
            try:
                returncode = self._process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                while_waiting()
                self._check_stall()
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

    def _computed_s(self) -> float:
        """Seconds of CPU time so far; 0 for a process that has ended."""
        try:
            times = psutil.Process(self._process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _check_stall(self) -> None:
        since, before_s = self._worked
        if (computed_s := self._computed_s()) > before_s:
            self._worked = (time.monotonic(), computed_s)
        elif time.monotonic() - since > self._waits.stall_s:
            self._log_last_lines(f"takes nothing and computes nothing for {self._waits.stall_s:.0f} s")
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
