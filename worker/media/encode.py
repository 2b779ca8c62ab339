"""Frames to a video file through a pipe to ffmpeg, with poster and frames beside it.

What `worker.media.formats` describes: H.264 in an MP4 by default, yuv420p, tagged and converted as BT.709 in TV range,
index at the front; exact frame rate and frame count, never resized. ffmpeg compresses while the caller's iterator makes
the next frame, and only a handful of frames is in memory at any time. Whatever fails, no file, process, thread or
descriptor is left behind.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from worker.base.errors import EncodeFailed
from worker.media import formats
from worker.media.ffmpeg import WAITS, Ffmpeg, Waits, program, raw_input, threads
from worker.media.formats import FORMATS, MP4, Format
from worker.media.frames_zip import FramesZip
from worker.media.marks.provenance import Provenance
from worker.media.poster import PosterPicker
from worker.request.values import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Frame = NDArray[np.uint8]

DEFAULT = Output()


@dataclass(frozen=True, slots=True)
class VideoFile:
    """An encoded video on the local disk, at `path` in `format`.

    `poster` is a JPEG and `frames` a ZIP of the frames as PNG, None where none was asked for. `provenance` says how the
    files are marked, None where they are not.
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
    provenance: Provenance | None = None

    @property
    def duration_seconds(self) -> float:
        return self.num_frames / self.fps


class _Beside(Protocol):
    """A file beside the video, made of the frames as they pass by."""

    def look(self, frame: Frame) -> None: ...

    def save(self) -> None: ...

    def close(self) -> None: ...


def encode(
    frames: Iterable[Frame],
    *,
    path: Path,
    width: int,
    height: int,
    num_frames: int,
    fps: int,
    poster: Path | None,
    poster_is_first: bool = False,
    frames_zip: Path | None = None,
    sound: Path | None = None,
    output: Output = DEFAULT,
    on_frame: Callable[[int], None] | None = None,
    ffmpeg: Path | None = None,
    waits: Waits = WAITS,
) -> VideoFile:
    """Encode exactly `num_frames` frames, each uint8 [height, width, 3] RGB, into a file at `path`.

    `output` says its format, codec and quality. A frame must not be written again once it was handed over. `path`,
    `poster` and `frames_zip` appear only when complete, in folders that must exist. `poster` is a JPEG of the first
    sharp frame, or of the very first; `frames_zip` a ZIP of all frames as PNG; None for none. `sound` is a file whose
    sound begins with the video and is heard where the format has any. `on_frame` is called with the number of frames
    handed over so far, after each and, with the same number, twice a second while ffmpeg is waited for. It may raise to
    stop the encode. `ffmpeg` is the program to run, imageio-ffmpeg's own by default.

    Raises EncodeFailed where ffmpeg cannot start, dies or hangs, where the frames are not as promised, and where the
    files cannot be written; ffmpeg's last lines go to the log. ValueError for an odd size, or an fps outside of what
    the format shows. Whatever the iterator or `on_frame` raises passes through unchanged. The iterator is closed in
    every case.
    """
    stamp = secrets.token_hex(4)
    wanted = [place for place in (frames_zip, poster, path) if place is not None]
    partial = {place: place.with_name(f".{place.name}.{stamp}.partial") for place in wanted}
    try:
        _check_format(output, width=width, height=height, num_frames=num_frames, fps=fps)
        with ExitStack() as ends:
            beside: list[_Beside] = []
            with _on_disk():
                if poster is not None:
                    beside.append(PosterPicker(partial[poster], first=poster_is_first))
                if frames_zip is not None:
                    beside.append(ends.enter_context(closing(FramesZip(partial[frames_zip]))))
            command = [
                *(str(ffmpeg or program()), "-hide_banner", "-nostats", "-loglevel", "warning", "-y"),
                *("-filter_threads", str(threads()), *raw_input(width, height, fps)),
                *(() if sound is None else ("-i", f"file:{sound}")),
                *(*formats.arguments(output, threads()), f"file:{partial[path]}"),
            ]
            process = ends.enter_context(closing(Ffmpeg(command, waits)))
            shape = (height, width, 3)
            _feed(frames, process, shape=shape, num_frames=num_frames, on_frame=on_frame, beside=beside)
        with _on_disk():
            size_bytes, sha256 = _measure(partial[path])
            for place in wanted:
                partial[place].replace(place)
    finally:
        _clear_up(partial.values(), frames)
    shown = FORMATS[output.format]
    return VideoFile(path, poster, width, height, num_frames, fps, size_bytes, sha256, frames_zip, shown)


def _clear_up(leftovers: Iterable[Path], frames: Iterable[Frame]) -> None:
    for leftover in leftovers:
        with suppress(OSError):
            leftover.unlink(missing_ok=True)
    close = getattr(frames, "close", None)
    if close is not None:
        close()


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        raise EncodeFailed("the finished video could not be written to the worker's disk; try again") from failure


def _check_format(output: Output, *, width: int, height: int, num_frames: int, fps: int) -> None:
    if width < 2 or height < 2 or width % 2 or height % 2:
        raise ValueError(f"width and height must be even (yuv420p), not {width}x{height}")
    max_fps = FORMATS[output.format].max_fps
    if not 1 <= fps <= max_fps:
        raise ValueError(f"fps must be 1 to {max_fps}, not {fps}")
    if num_frames < 1:
        raise ValueError(f"num_frames must be at least 1, not {num_frames}")


def _feed(
    frames: Iterable[Frame],
    process: Ffmpeg,
    *,
    shape: tuple[int, int, int],
    num_frames: int,
    on_frame: Callable[[int], None] | None,
    beside: Sequence[_Beside],
) -> None:
    """Hand every frame to ffmpeg and what is beside it, and wait until the files are written."""
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
        with _on_disk():
            for file in beside:
                file.look(frame)
        count += 1
        report()
    if count != num_frames:
        raise EncodeFailed(f"{count} frames were generated where {num_frames} were expected")
    process.finish(while_waiting=report)
    with _on_disk():
        for file in beside:
            file.save()


def _measure(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest
