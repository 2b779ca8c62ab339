"""Decodes an untrusted MP4 or WebM file to frames of a given rate and size, with ffmpeg in a sandbox.

ffmpeg gets one demuxer, chosen by the first bytes of the file, and may open local files only and no playlist format. A
file that it cannot read, that kills it or that takes too long is an InputInvalid.
"""

from __future__ import annotations

import threading
from pathlib import Path

import imageio_ffmpeg
from PIL import Image

from worker.base.errors import InputInvalid
from worker.media import sandbox

BOUNDS = sandbox.Bounds(memory_bytes=2_000_000_000, cpu_s=300, file_bytes=0, wall_s=120.0)
MAX_SOURCE_PIXELS = 4096 * 2304
FORMATS = "mov,mp4,matroska,webm"
THREADS = 2
_REMEDY = "send an MP4 (H.264) or WebM file"


def decode(
    file: Path,
    *,
    path: str,
    fps: int,
    width: int,
    height: int,
    max_frames: int,
    stop: threading.Event | None = None,
    bounds: sandbox.Bounds = BOUNDS,
) -> list[Image.Image]:
    """1 to `max_frames` RGB frames of the video in `file`, resampled to `fps`, centre-cropped and scaled to the frame.

    The aspect ratio is kept; rotation metadata is applied. `path` names the field in errors. Raises InputInvalid,
    Cancelled.
    """
    command = _command(file, _demuxer(file, path), fps=fps, width=width, height=height, max_frames=max_frames)
    with sandbox.running(command, bounds, folder=file.parent, stop=stop) as child:
        try:
            frames = [
                Image.frombytes("RGB", (width, height), bytes(pixels)) for pixels in child.blocks(width * height * 3)
            ]
        except sandbox.TooSlow:
            message = "the video takes too long to decode: send a shorter or smaller one"
            raise InputInvalid(message, path=path) from None
        finished = child.ended_well()
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
