"""Decodes an untrusted MP4 or WebM file to frames of a given rate and size, with ffmpeg in a sandbox.

ffmpeg gets one demuxer, chosen by the first bytes of the file, and may open local files only and no playlist format. A
file that it cannot read, that kills it or that takes too long is an InputInvalid.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

import imageio_ffmpeg
import numpy as np
from PIL import Image

from worker.base.errors import InputInvalid
from worker.media import sandbox

if TYPE_CHECKING:
    from numpy.typing import NDArray

BOUNDS = sandbox.Bounds(memory_bytes=2_000_000_000, cpu_s=300, file_bytes=0, wall_s=120.0)
MAX_SOUND_BYTES = 1_000_000_000  # of FLAC: hours
MAX_SOURCE_PIXELS = 4096 * 2304
HD_LINES = 720
MAX_REPORT_BYTES = 10_000_000
FORMATS = "mov,mp4,matroska,webm"
THREADS = 2
_REMEDY = "send an MP4 (H.264) or WebM file"
_UNREADABLE = f"not a video that can be decoded: {_REMEDY} of at most 4096x2304"
_FRAME = re.compile(r"^\[Parsed_showinfo\S* @ \S+\] n: .* sar:(\d+)/(\d+) s:(\d+)x(\d+) ", re.MULTILINE)
_COLOURS = re.compile(
    r"^\[Parsed_showinfo\S* @ \S+\] color_range:\S+ color_space:(\S+) color_primaries:(\S+) color_trc:(\S+)",
    re.MULTILINE,
)
_RATE = re.compile(r"^ *Stream #0:.* Video: .*, ([0-9.]+) fps,", re.MULTILINE)
_SOUND = re.compile(r"^ *Stream #0:.* Audio: ", re.MULTILINE)
_STARTS = re.compile(r"^\[Parsed_showinfo\S* @ \S+\] n: *0 .* pts_time:([0-9.]+) ", re.MULTILINE)
_VIDEO = ("-map", "0:V:0")  # V, unlike v, passes over cover pictures
_UNTAGGED = ("unknown", "reserved")
_HDR_TRANSFERS = ("smpte2084", "arib-std-b67")
# BT.2408: white of graphics and skin in daylight stand at and below 203 cd/m2. That becomes the white of BT.709, and
# what is brighter is clipped with its hue kept; a curve that spares highlights would darken everything else.
_TONE_MAP = (
    "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt709,tonemap=tonemap=clip,"
    "zscale=transfer=bt709:matrix=gbr:range=full,"
)


@dataclass(frozen=True, slots=True)
class SourceVideo:
    """A video file whose first frame can be decoded. `path` names the field in errors.

    `size` is the width and height of a frame as it is shown: upright, in square pixels. `colours` are ffmpeg filters
    that name the colours of a file that does not; `is_hdr` is true of PQ and HLG. `fps` is the rate that the file says,
    0 where it says none. The first frame is shown at `starts_s` on the clock of the file.
    """

    file: Path
    path: str
    size: tuple[int, int]
    colours: str
    is_hdr: bool
    fps: float = 0.0
    has_sound: bool = False
    starts_s: float = 0.0

    def write_sound(self, target: Path, *, seconds: float, stop: threading.Event | None = None) -> None:
        """Write the first `seconds` of the sound, from the first frame on, into `target`: FLAC of 48 kHz, in Matroska.

        Mono stays mono; what has more than two channels becomes stereo. Silence fills where the file has none yet.
        Raises InputInvalid where there is no sound that can be decoded, Cancelled.
        """
        filters = (
            f"aresample=48000:async=1:first_pts=0,aformat=channel_layouts=mono|stereo,"
            f"atrim=start={self.starts_s}:duration={seconds},asetpts=PTS-STARTPTS"
        )
        output = ("-map", "0:a:0", "-af", filters, "-c:a", "flac", "-f", "matroska", "pipe:1")
        bounds = replace(BOUNDS, file_bytes=MAX_SOUND_BYTES)
        command = _command(self.file, self.path, *output)
        with (
            target.open("wb") as opened,
            _ffmpeg(command, self.file, self.path, bounds, stop, stdout=opened) as child,
        ):
            child.wait()
            if not child.ended_well():
                raise InputInvalid("it cannot be decoded", path=self.path)

    def own_frames(
        self, *, width: int, height: int, max_frames: int, stop: threading.Event | None = None
    ) -> Generator[NDArray[np.uint8]]:
        """The first `max_frames` of the file's own frames, uint8 [height, width, 3] RGB, cropped around the centre.

        Neither resampled nor, where pixels are square, scaled. Raises InputInvalid, Cancelled.
        """
        filters = (
            f"{self.colours}bwdif=mode=send_frame:deint=interlaced,scale={self.size[0]}:{self.size[1]},"
            f"crop={width}:{height},{_TONE_MAP if self.is_hdr else ''}format=rgb24,trim=end_frame={max_frames}"
        )
        with _ffmpeg(_pictures(self.file, self.path, filters), self.file, self.path, BOUNDS, stop) as child:
            for pixels in child.blocks(width * height * 3):
                yield np.frombuffer(bytes(pixels), np.uint8).reshape(height, width, 3)
            if not child.ended_well():
                raise InputInvalid(_UNREADABLE, path=self.path)

    def frames(
        self,
        *,
        fps: int,
        width: int,
        height: int,
        max_frames: int,
        stop: threading.Event | None = None,
        bounds: sandbox.Bounds = BOUNDS,
    ) -> list[Image.Image]:
        """1 to `max_frames` RGB frames, resampled to `fps`, centre-cropped and scaled to `width` x `height`.

        The first is the first of the file. Interlaced frames are deinterlaced, rotation and the aspect ratio of pixels
        are applied, HDR is tone-mapped to BT.709. Raises InputInvalid, Cancelled.
        """
        command = _pictures(self.file, self.path, self._filters(fps, width, height, max_frames))
        with _ffmpeg(command, self.file, self.path, bounds, stop) as child:
            blocks = child.blocks(width * height * 3)
            frames = [Image.frombytes("RGB", (width, height), bytes(pixels)) for pixels in blocks]
            finished = child.ended_well()
        if not finished or not frames:
            raise InputInvalid(_UNREADABLE, path=self.path)
        return frames

    def _filters(self, fps: int, width: int, height: int, max_frames: int) -> str:
        # Surplus frames are dropped before the costly filters, and missing ones repeated behind them: the copies of a
        # frame that stands for 30 s share its memory, and `trim` ends the file as soon as there are enough.
        slot, previous = (rf"floor({time}*{fps}+0.5)" for time in ("t", "prev_selected_t"))
        # Crop before scaling: a strip of 16 by 8000 pixels scaled to cover the frame would fill gigabytes.
        return (
            f"{self.colours}bwdif=mode=send_frame:deint=interlaced,"
            f"select='isnan(prev_selected_t)+gt({slot},{previous})',"
            f"crop=w='min(iw,ih*{width}/{height}/sar)':h='min(ih,iw*sar*{height}/{width})',"
            f"scale={width}:{height}:flags=lanczos,{_TONE_MAP if self.is_hdr else ''}"
            f"format=rgb24,fps={fps},trim=end_frame={max_frames}"
        )


def open_video(
    file: Path, *, path: str, stop: threading.Event | None = None, bounds: sandbox.Bounds = BOUNDS
) -> SourceVideo:
    """Decode the first frame of the video in `file`, and say what it is. Raises InputInvalid, Cancelled."""
    # ffmpeg turns the frame upright before the filters; side data may hold any amount of text.
    output = (*_VIDEO, "-vf", "sidedata=mode=delete,showinfo", "-frames:v", "1", "-f", "null", "-")
    command = _command(file, path, *output, loglevel="info")
    bounds = replace(bounds, file_bytes=MAX_REPORT_BYTES)
    with tempfile.TemporaryFile() as log:
        with _ffmpeg(command, file, path, bounds, stop, stderr=log) as child:
            child.wait()
        log.seek(0)
        report = log.read().decode("utf-8", "replace")
    frame, colours = _FRAME.search(report), _COLOURS.search(report)
    if frame is None or colours is None:
        raise InputInvalid(_UNREADABLE, path=path)
    numerator, denominator, width, height = map(int, frame.groups())
    aspect = numerator / denominator if numerator and denominator else 1.0
    size = (max(1, round(width * aspect)), height)
    is_hdr = colours[3] in _HDR_TRANSFERS
    rate, starts = _RATE.search(report), _STARTS.search(report)
    return SourceVideo(
        *(file, path, size, _named_colours(size, colours[1], colours[2], is_hdr), is_hdr),
        fps=0.0 if rate is None else float(rate[1]),
        has_sound=_SOUND.search(report) is not None,
        starts_s=0.0 if starts is None else float(starts[1]),
    )


def _named_colours(size: tuple[int, int], matrix: str, primaries: str, is_hdr: bool) -> str:
    """The filter that names what the file leaves open, as players assume it: BT.709 from HD_LINES on, BT.601 below."""
    assumed = []
    if matrix in _UNTAGGED:
        of_size = "bt709" if size[1] >= HD_LINES else "smpte170m"
        assumed.append(f"colorspace={'bt2020nc' if is_hdr else of_size}")
    if is_hdr and primaries in _UNTAGGED:
        assumed.append("color_primaries=bt2020")
    return f"setparams={':'.join(assumed)}," if assumed else ""


@contextmanager
def _ffmpeg(
    command: list[str],
    file: Path,
    path: str,
    bounds: sandbox.Bounds,
    stop: threading.Event | None,
    *,
    stdout: IO[bytes] | int = subprocess.PIPE,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[sandbox.Child]:
    with sandbox.running(command, bounds, stdout=stdout, stderr=stderr, folder=file.parent, stop=stop) as child:
        try:
            yield child
        except sandbox.TooSlow:
            message = "the video takes too long to decode: send a shorter or smaller one"
            raise InputInvalid(message, path=path) from None


def _pictures(file: Path, path: str, filters: str) -> list[str]:
    """The command that writes frames, uint8 RGB, to its standard output."""
    output = ("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1")
    return _command(file, path, *_VIDEO, "-vf", filters, *output)


def _command(file: Path, path: str, *output: str, loglevel: str = "quiet") -> list[str]:
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-nostats", "-loglevel", loglevel),
        *("-filter_threads", "1", "-threads", str(THREADS)),
        *("-protocol_whitelist", "file", "-format_whitelist", FORMATS, "-max_pixels", str(MAX_SOURCE_PIXELS)),
        *("-f", _demuxer(file, path), "-i", f"file:{file}", *output),
    ]


def _demuxer(file: Path, path: str) -> str:
    with file.open("rb") as opened:
        head = opened.read(12)
    if head[4:8] == b"ftyp":
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    raise InputInvalid(f"not a video in a supported format: {_REMEDY}", path=path)
