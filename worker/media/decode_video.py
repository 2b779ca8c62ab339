"""Decodes an untrusted MP4 or WebM file to frames of a given rate and size, with ffmpeg in a bounded process.

ffmpeg gets one demuxer, chosen by the file's first bytes, may open local files only and no playlist format, inherits
no environment, and is limited in memory, CPU seconds and wall-clock time. A file that it cannot read, that kills it
or that takes too long is an InputInvalid.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from worker.base.errors import Cancelled, InputInvalid

TIME_LIMIT_S = 120.0
CPU_LIMIT_S = 300
MEMORY_BYTES = 2_000_000_000
MAX_SOURCE_PIXELS = 4096 * 2304
FORMATS = "mov,mp4,matroska,webm"
THREADS = 2
_POLL_S = 0.1
_EXIT_GRACE_S = 5.0
_REMEDY = "send an MP4 (H.264) or WebM file"

# Limits itself, then becomes ffmpeg: a limit that the parent sets on a running child comes too late.
_LIMITED = f"""
import os, resource, sys
limits = {{"AS": {MEMORY_BYTES}, "CPU": {CPU_LIMIT_S}, "FSIZE": 0, "CORE": 0}}
for name, amount in limits.items():
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (amount, amount))
os.execv(sys.argv[1], sys.argv[1:])
"""


def decode(
    file: Path,
    *,
    path: str,
    fps: int,
    width: int,
    height: int,
    max_frames: int,
    stop: threading.Event | None = None,
    time_limit_s: float = TIME_LIMIT_S,
) -> list[Image.Image]:
    """1 to `max_frames` RGB frames of the video in `file`, resampled to `fps`, centre-cropped and scaled to the frame.

    The aspect ratio is kept; rotation metadata is applied. Raises InputInvalid, Cancelled.
    """
    command = _command(file, _demuxer(file, path), fps=fps, width=width, height=height, max_frames=max_frames)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _LIMITED, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=file.parent,
    ) as child:
        try:
            ends_at = time.monotonic() + time_limit_s
            frames = [
                Image.frombytes("RGB", (width, height), bytes(pixels))
                for pixels in _frames(child, width * height * 3, ends_at, path, stop)
            ]
            finished = child.wait(_EXIT_GRACE_S) == 0
        except subprocess.TimeoutExpired:
            finished = False
        finally:
            child.kill()
    if not finished or not frames:
        raise InputInvalid(f"not a video that can be decoded: {_REMEDY} of at most 4096x2304", path=path)
    return frames


def _demuxer(file: Path, path: str) -> str:
    with file.open("rb") as opened:
        head = opened.read(12)
    if head[4:8] == b"ftyp":
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    raise InputInvalid(f"not a video in a supported format: {_REMEDY}", path=path)


def _command(file: Path, demuxer: str, *, fps: int, width: int, height: int, max_frames: int) -> list[str]:
    # Crop before scaling: a strip of 16 by 8000 pixels scaled to cover the frame would fill gigabytes.
    filters = (
        f"fps={fps},crop=w='min(iw,ih*{width}/{height})':h='min(ih,iw*{height}/{width})',"
        f"scale={width}:{height}:flags=lanczos"
    )
    guards = ["-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(MAX_SOURCE_PIXELS)]
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "quiet"),
        *("-filter_threads", "1", "-threads", str(THREADS)),
        *(*guards, "-f", demuxer, "-i", f"file:{file}"),
        # V, unlike v, passes over cover pictures.
        *("-map", "0:V:0", "-vf", filters, "-frames:v", str(max_frames)),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"),
    ]


def _frames(
    child: subprocess.Popen[bytes], frame_bytes: int, ends_at: float, path: str, stop: threading.Event | None
) -> Iterator[bytearray]:
    """Each frame as it arrives, in one buffer that is used again."""
    assert child.stdout is not None
    descriptor = child.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLHUP)
    buffer = bytearray(frame_bytes)
    filled = 0
    while True:
        if stop is not None and stop.is_set():
            raise Cancelled
        if time.monotonic() >= ends_at:
            raise InputInvalid("the video takes too long to decode: send a shorter or smaller one", path=path)
        if not poll.poll(_POLL_S * 1000):
            continue
        count = os.readv(descriptor, [memoryview(buffer)[filled:]])
        if count == 0:
            return
        filled += count
        if filled == frame_bytes:
            yield buffer
            filled = 0
