"""A finished video encoded again, so that its file has no more than a number of bytes.

An MP4 or WebM gets the bit rate that its duration leaves, and a smaller picture where the codec cannot reach that; a
GIF or WebP gets a smaller picture. What comes out has the frames and the duration of what went in.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from worker.base.errors import Cancelled, EncodeFailed
from worker.base.stop import Flag
from worker.media import ffmpeg
from worker.media.encode import VideoFile
from worker.media.formats import BT709_TAGS, CODECS
from worker.request.payload import OutputCodec

logger = logging.getLogger(__name__)

ATTEMPTS = 6
LEAST_SHARE = 0.25  # of a side of the picture
TIME_LIMIT_S = 600.0
_AIM = 0.9
_POLL_S = 0.05
_EVEN = 2
# Bytes of a container without pictures, of a frame in it, and the bits that a codec needs for a pixel of noise.
_CONTAINER_BYTES, _FRAME_BYTES, _PIXEL_BITS = 5000, 30, 0.02
_PIXEL_BITS_OF = {"gif": 12.0, "webp": 4.0}
_SOUND_BIT_RATE = "48k"
# They have no bit rate: only a smaller picture makes their files smaller.
_BY_SIZE = frozenset(_PIXEL_BITS_OF)


def least_bytes(codec: OutputCodec, width: int, height: int, num_frames: int) -> int:
    """What `encode_to_fit` reaches with any pictures of that size, whatever they show: an estimate on the safe side."""
    pixels = width * height * num_frames * LEAST_SHARE**2
    return _CONTAINER_BYTES + _FRAME_BYTES * num_frames + math.ceil(pixels * _PIXEL_BITS_OF.get(codec, _PIXEL_BITS) / 8)


def encode_to_fit(
    video: VideoFile, max_bytes: int, *, codec: OutputCodec, path: Path, stop: Flag | None = None
) -> VideoFile:
    """Encode `video` into `path`, whose suffix is that of its format, with `max_bytes` at most.

    Blocks. Raises EncodeFailed where that cannot be reached or ffmpeg fails, Cancelled on `stop`.
    """
    aim_bytes, share = _AIM * max_bytes, 1.0
    if codec in _BY_SIZE:
        share = _next_share(share, video.size_bytes, max_bytes)
    for number in range(ATTEMPTS):
        width, height = (max(_EVEN, round(side * share / _EVEN) * _EVEN) for side in (video.width, video.height))
        bits = max(1000, int(8 * aim_bytes / video.duration_seconds))
        _run(_command(video, path, codec, width, height, bits), stop)
        size_bytes = path.stat().st_size
        if size_bytes <= max_bytes:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            logger.info("encoded again to fit: %d bytes became %d", video.size_bytes, size_bytes)
            return replace(video, path=path, width=width, height=height, size_bytes=size_bytes, sha256=digest)
        if codec not in _BY_SIZE and number % 2 == 0:
            aim_bytes *= _AIM * max_bytes / size_bytes
        else:
            share = _next_share(share, size_bytes, max_bytes)
    raise EncodeFailed(f"the video could not be made smaller than {max_bytes} bytes: send a shorter or smaller one")


def _next_share(share: float, size_bytes: int, max_bytes: int) -> float:
    return max(LEAST_SHARE, share * math.sqrt(max_bytes / size_bytes) * _AIM)


def _command(video: VideoFile, path: Path, name: OutputCodec, width: int, height: int, bits: int) -> list[str]:
    codec, filters = CODECS[name], f"scale={width}:{height}:flags=lanczos"
    if name in _BY_SIZE:
        filters += f",{codec.filters['low']}"
        rate = list(codec.quality["low"])
    else:
        filters += f",format=yuv420p,{BT709_TAGS}"
        rate = ["-b:v", str(bits)]
        rate += ["-maxrate", str(bits), "-bufsize", str(bits)] if name in ("h264", "hevc") else []
    return [
        str(ffmpeg.program()),
        *("-hide_banner", "-nostats", "-loglevel", "error", "-y", "-nostdin", "-i", f"file:{video.path}"),
        *video.format.sound_arguments(_SOUND_BIT_RATE),
        *("-vf", filters, *codec.arguments(ffmpeg.threads()), *rate),
        *("-fps_mode", "passthrough", *video.format.muxer, f"file:{path}"),
    ]


def _run(command: list[str], stop: Flag | None) -> None:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
    except OSError as failure:
        raise EncodeFailed("the video encoder could not be started; try again") from failure
    ends_at = time.monotonic() + TIME_LIMIT_S
    try:
        while True:
            try:
                _, said = process.communicate(timeout=_POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    raise Cancelled from None
                if time.monotonic() > ends_at:
                    raise EncodeFailed("the video encoder stopped responding; try again") from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        logger.error("ffmpeg ended with exit code %d:\n%s", process.returncode, said.decode("utf-8", "replace")[-2000:])
        raise EncodeFailed("the video could not be encoded again; try again")
