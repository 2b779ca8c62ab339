"""Every codec at every named quality: seconds, bytes and likeness of two clips. See `benchmarks.encode`.

The clips are the textured pan of `benchmarks.encode_presets`, which is hard to compress, and a drawn scene of the demo
model's training, which is easy. A quality of HEVC, AV1 and VP9 must be as like as that of H.264 of the same name,
within TOLERANCE of SSIM; GIF and WebP, which know no motion, are shown beside them.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import reporting
from benchmarks.encode_presets import FPS, clip, cpu_seconds, ssim
from worker.media import FORMATS, formats
from worker.media.encode import encode
from worker.request.payload import OutputCodec, OutputFormat, VideoQuality
from worker.request.values import Output

FORMAT_OF: dict[OutputCodec, OutputFormat] = {"vp9": "webm", "gif": "gif", "webp": "webp"}
HELD_ALIKE: tuple[OutputCodec, ...] = ("hevc", "av1", "vp9")
QUALITIES: tuple[VideoQuality, ...] = ("low", "medium", "high", "maximum")
TOLERANCE = 0.001


@dataclass(frozen=True)
class Run:
    """One file. ssim: of luma and chroma together, against the frames that went in."""

    clip: str
    codec: OutputCodec
    quality: VideoQuality
    seconds: float
    cpu_seconds: float
    size_bytes: int
    ssim: float


def clips(*, quick: bool) -> dict[str, list[np.ndarray]]:
    from training import scenes
    from training.clips import clip as drawn

    width, height, count = (160, 96, 5) if quick else (832, 480, 33)
    scene = scenes.draw(np.random.default_rng(2), held_out=False)
    return {
        "pan": list(clip(width, height, count)),
        "scene": list(drawn(scene, height=height, width=width, num_frames=count)),
    }


def measure(name: str, source: list[np.ndarray], codec: OutputCodec, quality: VideoQuality) -> Run:
    output = Output(format=FORMAT_OF.get(codec, "mp4"), codec=codec, quality=quality)
    height, width, _ = source[0].shape
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{FORMATS[output.format].suffix}"
        before, began = cpu_seconds(), time.perf_counter()
        video = encode(
            source, path=path, width=width, height=height, num_frames=len(source), fps=FPS, poster=None, output=output
        )
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - before
        return Run(name, codec, quality, seconds, cpu, video.size_bytes, ssim(source, path))


def run_all(*, quick: bool) -> dict[str, Any]:
    """Prints the table; returns the runs, and whether the codecs are as like as H.264."""
    sources = clips(quick=quick)
    runs = []
    for quality in QUALITIES[-1:] if quick else QUALITIES:
        for codec in formats.CODECS:
            for name, source in sources.items():
                print(f"{codec}, {quality}, {name}", file=sys.stderr)
                runs.append(measure(name, source, codec, quality))
    print(_table(runs, next(iter(sources.values()))))
    alike = not (short := list(_short(runs)))
    for run, by in short:
        print(f"{run.codec} {run.quality}, {run.clip}: {by:.4f} below H.264")
    return {"alike": alike, "runs": reporting.as_dicts(runs)}


def _short(runs: list[Run]) -> list[tuple[Run, float]]:
    """The runs that fall short of H.264's likeness, and by how much."""
    exact = {(run.clip, run.quality): run.ssim for run in runs if run.codec == "h264"}
    by = [(run, exact[run.clip, run.quality] - run.ssim) for run in runs if run.codec in HELD_ALIKE]
    return [(run, short) for run, short in by if short > TOLERANCE]


def _table(runs: list[Run], source: list[np.ndarray]) -> str:
    height, width, _ = source[0].shape
    heads = ("quality", "codec", "setting", "pan: SSIM", "MB", "CPU (s)", "scene: SSIM", "MB", "CPU (s)")
    rows: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        settings = formats.CODECS[run.codec].quality[run.quality]
        setting = " ".join(settings).removeprefix("-") or "palette"
        cells = rows.setdefault((run.quality, run.codec), [run.quality, f"`{run.codec}`", setting])
        cells += [f"{run.ssim:.4f}", f"{run.size_bytes / 1e6:.3f}", f"{run.cpu_seconds:.2f}"]
    return f"{width}x{height}, {len(source)} frames\n\n{reporting.table(heads, rows.values(), words=3)}"
