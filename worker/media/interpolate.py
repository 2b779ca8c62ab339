"""Frames between the generated ones, for a higher rate at the same duration, streamed between decoder and encoder.

A rate of `target` gives round(frames * target / fps) frames; frame j of them shows the instant j / target. Where a
generated frame shows that instant, it is used as it is; behind the last generated frame, that frame stays. The others
come from an interpolator, which a literal registry names.

ffmpeg's interpolation uses one core and takes longer than anything else behind the GPU (benchmarks.interpolate), so the
frames are divided into chunks that several ffmpegs work on at once. What they make does not depend on their number.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worker.base.errors import EncodeFailed
from worker.media.ffmpeg import program, raw_input, threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

logger = logging.getLogger(__name__)

# Beside its own frames a chunk takes some before and two behind. More in a chunk: less work done twice, more memory.
CHUNK_FRAMES = 8
# minterpolate makes no frame of the last interval that it has seen.
_BEHIND = 2
CHUNK_WAIT_S = 300.0
_POLL_S = 0.5
_LOG_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Interpolator:
    """A filter of ffmpeg, a template of `rate`, that makes frames at a higher rate."""

    filters: str


# Held against true frames of drawn clips (benchmarks.interpolate), these settings beat repeated and blended frames.
# Elsewhere: search by `umh` costs twice the time, is no better; blocks of 8 pixels gain at 2x, lose at 4x.
INTERPOLATORS: Mapping[str, Interpolator] = {
    "motion": Interpolator(
        "format=yuv444p,minterpolate=fps={rate}:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1,format=rgb24"
    ),
}
DEFAULT = "motion"


def count(num_frames: int, fps: int, target: int) -> int:
    """How many frames the file has: the duration stays, to within half a frame of it."""
    return max(1, (2 * num_frames * target + fps) // (2 * fps))


def at_rate(
    frames: Iterator[Frame], *, num_frames: int, fps: int, target: int, check: Callable[[], None]
) -> tuple[Iterator[Frame], int]:
    """The frames at the rate `target`, and how many: interpolated where it is above `fps`, some left out below it."""
    wanted = count(num_frames, fps, target)
    if target > fps:
        return interpolated(frames, num_frames=num_frames, fps=fps, target=target, check=check), wanted
    if target < fps:
        return repeated(frames, num_frames=num_frames, fps=fps, target=target), wanted
    return frames, num_frames


def repeated(frames: Iterable[Frame], *, num_frames: int, fps: int, target: int) -> Iterator[Frame]:
    """The frames at the rate `target`, above or below `fps`: of each instant the last generated frame, nothing new."""
    wanted = count(num_frames, fps, target)
    given = iter(frames)
    shown, frame = -1, None
    for number in range(wanted):
        while shown < min(number * fps // target, num_frames - 1):
            frame, shown = next(given), shown + 1
        assert frame is not None
        yield frame
    deque(given, maxlen=0)  # the decoder ends in its own way, and an error there is seen


def interpolated(
    frames: Iterable[Frame],
    *,
    num_frames: int,
    fps: int,
    target: int,
    check: Callable[[], None],
    interpolator: str = DEFAULT,
    workers: int | None = None,
    ffmpeg: Path | None = None,
) -> Generator[Frame]:
    """The frames, uint8 [height, width, 3], at the rate `target`, which is above `fps`; `count` says how many.

    `check` is called twice a second while ffmpeg is waited for, and may raise to stop the work. A few chunks of frames
    are in memory, whatever the length. Close the iterator in every case, and then `frames`: it ends the processes.

    Raises EncodeFailed where ffmpeg cannot start, dies, hangs or makes too few frames; its last lines go to the log.
    """
    common = gcd(fps, target)
    ratio = _Ratio(fps // common, target // common)
    run = _Runs(INTERPOLATORS[interpolator].filters.format(rate=target), fps, ratio, workers or threads(), ffmpeg)
    left = count(num_frames, fps, target)
    with closing(run):
        for chunk in chain(_chunks(frames, ratio), (None,)):
            if chunk is not None:
                run.start(chunk)
            while run.pending and (chunk is None or run.is_full):
                for frame in run.oldest(check)[:left]:
                    left -= 1
                    yield frame
    if left:
        raise EncodeFailed(f"the interpolation made {left} frames too few")


@dataclass(frozen=True, slots=True)
class _Ratio:
    """`shown` frames of the file for every `given` generated ones, in lowest terms."""

    given: int
    shown: int


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Generated frames to be interpolated: `before` that are known already, its `own`, and two behind them."""

    frames: Sequence[Frame]
    before: int
    own: int
    is_last: bool


def _chunks(frames: Iterable[Frame], ratio: _Ratio) -> Iterator[_Chunk]:
    """Chunks that begin where a generated frame is shown. The last one has its last frame repeated behind it."""
    size = -(-CHUNK_FRAMES // ratio.given) * ratio.given
    window: list[Frame] = []
    before = 0
    for frame in frames:
        window.append(frame)
        if len(window) == before + size + _BEHIND:
            yield _Chunk(tuple(window), before, size, is_last=False)
            del window[: before + size - ratio.given]
            before = ratio.given
    if window:
        yield _Chunk((*window, *[window[-1]] * _BEHIND), before, len(window) - before, is_last=True)


class _Runs:
    """An ffmpeg for each chunk, several at once, whose frames are read in the order of the chunks.

    `close` must be called in every case; it ends the processes.
    """

    def __init__(self, filters: str, fps: int, ratio: _Ratio, workers: int, ffmpeg: Path | None) -> None:
        self._filters = filters
        self._fps = fps
        self._ratio = ratio
        self._program = ffmpeg or program()
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="interpolate")
        self.pending: deque[Future[list[Frame]]] = deque()
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    @property
    def is_full(self) -> bool:
        return len(self.pending) >= self._workers

    def start(self, chunk: _Chunk) -> None:
        self.pending.append(self._pool.submit(self._frames, chunk))

    def oldest(self, check: Callable[[], None]) -> list[Frame]:
        """The frames of the chunk that was started first and not yet read."""
        future = self.pending.popleft()
        while True:
            try:
                return future.result(_POLL_S)
            except NotYet:
                check()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._processes:
                _kill(process)
        self._pool.shutdown(cancel_futures=True)

    def _frames(self, chunk: _Chunk) -> list[Frame]:
        height, width, _ = chunk.frames[0].shape
        raw = self._run(chunk, width, height)
        made = np.frombuffer(raw, np.uint8, len(raw) // (height * width * 3) * height * width * 3)
        made = made.reshape(-1, height, width, 3)[chunk.before // self._ratio.given * self._ratio.shown :]
        own = chunk.frames[chunk.before : chunk.before + chunk.own]
        wanted = -(-chunk.own * self._ratio.shown // self._ratio.given)
        if len(made) < wanted:
            raise EncodeFailed(f"the interpolation made {len(made)} frames of a chunk where {wanted} were expected")
        frames = []
        for number in range(wanted):
            instant, between = divmod(number * self._ratio.given, self._ratio.shown)
            stays = chunk.is_last and instant == chunk.own - 1
            frames.append(made[number] if between and not stays else own[instant])
        return frames

    def _run(self, chunk: _Chunk, width: int, height: int) -> bytes:
        command = [
            *(str(self._program), "-hide_banner", "-nostats", "-loglevel", "error", "-filter_threads", "1"),
            *(*raw_input(width, height, self._fps), "-an", "-vf", self._filters),
            *("-fps_mode", "passthrough", "-f", "rawvideo", "pipe:1"),
        ]
        with self._lock:
            if self._closed:
                raise EncodeFailed("the interpolation was stopped")
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except OSError as failure:
                raise EncodeFailed("the video encoder could not be started; try again") from failure
            self._processes.add(process)
        with process:
            try:
                made, said = process.communicate(b"".join(frame.tobytes() for frame in chunk.frames), CHUNK_WAIT_S)
            except subprocess.TimeoutExpired:
                raise EncodeFailed("the interpolation stopped responding; try again") from None
            finally:
                _kill(process)
                with self._lock:
                    self._processes.discard(process)
        if process.returncode != 0:
            last = said[-_LOG_BYTES:].decode("utf-8", "replace").strip()
            logger.error("ffmpeg ended with %d while interpolating; its last lines:\n%s", process.returncode, last)
            raise EncodeFailed("the interpolation ended early; try again")
        return made


def _kill(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
