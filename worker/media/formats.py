"""The files that a video can be: each format and each codec is one description, in two literal registries.

A codec says how ffmpeg compresses RGB frames at each named quality, a format what the result is put into. Adding one is
a line here and its name in `worker.request.payload`. The figures behind the qualities: docs/output-files.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from worker.base.errors import Unsupported
from worker.media import ffmpeg
from worker.request.payload import OutputCodec, OutputFormat, VideoQuality
from worker.request.values import Output, VideoRequest

MAX_FPS = 60
SOUND_BIT_RATE = "192k"


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file. `suffix` begins with a dot. `muxer` are ffmpeg's options of the file.

    `sound` is ffmpeg's encoder of its sound, None where it has none; `max_fps` the highest rate that players keep to.
    """

    name: OutputFormat
    suffix: str
    content_type: str
    muxer: tuple[str, ...]
    sound: str | None = None
    max_fps: int = MAX_FPS

    def sound_arguments(self, bit_rate: str) -> list[str]:
        """ffmpeg's choice of what becomes of the sound: `bit_rate` such as "192k"."""
        return ["-an"] if self.sound is None else ["-c:a", self.sound, "-b:a", bit_rate]


@dataclass(frozen=True, slots=True)
class Codec:
    """A way to compress. `encoder` is ffmpeg's name of it; `{threads}` stands for a number in `options`.

    `filters` and `quality` (further options) are by the quality's name; the filters take RGB frames.
    """

    encoder: str
    filters: Mapping[VideoQuality, str]
    options: tuple[str, ...]
    quality: Mapping[VideoQuality, tuple[str, ...]]

    def arguments(self, threads: int) -> list[str]:
        """ffmpeg's choice of the encoder, with its options."""
        return ["-c:v", self.encoder, *(option.format(threads=threads) for option in self.options)]


MP4 = Format("mp4", ".mp4", "video/mp4", ("-movflags", "+faststart", "-f", "mp4"), "aac")
WEBM = Format("webm", ".webm", "video/webm", ("-cues_to_front", "1", "-f", "webm"), "libopus")
# A GIF counts in hundredths of a second, and players show a frame of less than two of them for ten.
GIF = Format("gif", ".gif", "image/gif", ("-loop", "0", "-f", "gif"), max_fps=50)
WEBP = Format("webp", ".webp", "image/webp", ("-loop", "0", "-f", "webp"))

FORMATS: Mapping[OutputFormat, Format] = {each.name: each for each in (MP4, WEBM, GIF, WEBP)}

# The tags must be set on the frames: as output options ffmpeg ignores -color_primaries and -color_trc.
BT709_TAGS = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
_BT709 = f"scale=flags=accurate_rnd:out_color_matrix=bt709:out_range=tv,format=yuv420p,{BT709_TAGS}"


def _graded(*, low: str, medium: str, high: str, maximum: str) -> Mapping[VideoQuality, str]:
    return {"low": low, "medium": medium, "high": high, "maximum": maximum}


def _yuv(encoder: str, options: tuple[str, ...], *, low: int, medium: int, high: int, maximum: int) -> Codec:
    """A codec of yuv420p whose quality is a CRF."""
    crf = _graded(low=str(low), medium=str(medium), high=str(high), maximum=str(maximum))
    return Codec(encoder, dict.fromkeys(crf, _BT709), options, {name: ("-crf", value) for name, value in crf.items()})


def _palette(colours: int) -> str:
    """One palette for the whole clip: ffmpeg keeps the frames, 4 bytes a pixel, until it knows it."""
    return (
        f"split[seen][shown];[seen]palettegen=max_colors={colours}:reserve_transparent=0[palette];"
        "[shown][palette]paletteuse=dither=sierra2_4a"
    )


CODECS: Mapping[OutputCodec, Codec] = {
    # 81 frames of 1280x720 at CRF 18 on two cores (benchmarks.encode --presets): veryfast 1.7 s, 1.5 MB, SSIM 0.989;
    # fast 2.9 s, 2.3 MB, 0.994; medium 2.9 s, 1.4 MB, 0.996; slow 3.6 s, 1.2 MB, 0.997. That time runs beside the
    # decode, which takes longer on most GPUs, so it costs nothing up to medium; slow would make the worker wait.
    "h264": _yuv("libx264", ("-preset", "medium", "-threads", "{threads}"), low=28, medium=23, high=18, maximum=12),
    # Apple's players show HEVC under this tag alone.
    "hevc": _yuv(
        "libx265",
        ("-preset", "fast", "-x265-params", "pools={threads}:log-level=error", "-tag:v", "hvc1"),
        **{"low": 28, "medium": 22, "high": 16, "maximum": 9},
    ),
    "av1": _yuv("libsvtav1", ("-preset", "8", "-svtav1-params", "lp={threads}"), low=42, medium=34, high=22, maximum=9),
    "vp9": _yuv(
        "libvpx-vp9",
        ("-b:v", "0", "-deadline", "good", "-cpu-used", "4", "-row-mt", "1", "-threads", "{threads}"),
        **{"low": 38, "medium": 30, "high": 17, "maximum": 6},
    ),
    # Ordered dithering is no smaller, and much less like the frames (SSIM of a drawn scene: 0.967; this one 0.9998). A
    # palette for each frame takes three times as long and is no better.
    "gif": Codec(
        "gif",
        _graded(low=_palette(64), medium=_palette(128), high=_palette(256), maximum=_palette(256)),
        (),
        dict.fromkeys(_graded(low="", medium="", high="", maximum=""), ()),
    ),
    # WebP has a colour matrix of its own: its library converts.
    "webp": Codec(
        "libwebp_anim",
        dict.fromkeys(_graded(low="", medium="", high="", maximum=""), "format=bgra"),
        ("-compression_level", "4"),
        {
            "low": ("-quality", "70"),
            "medium": ("-quality", "80"),
            "high": ("-quality", "90"),
            "maximum": ("-quality", "98"),
        },
    ),
}


def frame_rate(output: Output, fps: int) -> int:
    """The frame rate of the file whose frames are generated at `fps`."""
    wanted = fps if output.target_fps is None else output.target_fps
    return min(wanted, FORMATS[output.format].max_fps)


def notes(request: VideoRequest) -> tuple[str, ...]:
    """What the format changes of the request, in words for its warnings."""
    output = request.output
    wanted = request.fps if output.target_fps is None else output.target_fps
    if (rate := frame_rate(output, request.fps)) == wanted:
        return ()
    field = request.at("fps" if output.target_fps is None else "target_fps")
    return (f"{field}: {wanted} lowered to {rate}, the highest rate of a {output.format.upper()}",)


def check(output: Output, *, path: str) -> None:
    """Raises Unsupported, with `path`, where this worker's ffmpeg lacks the codec; EncodeFailed where it cannot run."""
    codec = CODECS[output.codec]
    if codec.encoder not in ffmpeg.encoders():
        message = f"this worker's ffmpeg has no {codec.encoder}, which makes {output.codec}: send another codec"
        raise Unsupported(message, path=path)


def arguments(output: Output, threads: int) -> list[str]:
    """ffmpeg's arguments between its inputs, RGB frames and perhaps sound, and the name of the file."""
    codec = CODECS[output.codec]
    return [
        *(
            *FORMATS[output.format].sound_arguments(SOUND_BIT_RATE),
            "-vf",
            codec.filters[output.quality],
            *codec.arguments(threads),
        ),
        *codec.quality[output.quality],
        *("-fps_mode", "passthrough", *FORMATS[output.format].muxer),
    ]
