"""One video on the GPU: prompt, latents, frames, file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from worker.base.log import fingerprint
from worker.base.stop import Stop
from worker.engine import Engine, Video, device
from worker.jobs.report import VideoReport
from worker.media import FORMATS, VideoFile, formats, interpolate
from worker.media.encode import encode
from worker.request import VideoRequest
from worker.request.plan import Shape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Generated:
    """What the engine says of a video. `shape` is what was generated, in all segments."""

    shape: Shape
    parameters: Mapping[str, Any]
    warnings: tuple[str, ...]
    cold_start: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """A video that is encoded and waits to be stored. `peak_vram_bytes` is None on a CPU.

    Of one that ends with its previews `file` is no file: it says how large and long the video would be. `segments` are
    those of a longer video as its result lists them; `unfinished` is why they are not all.
    """

    video: Video
    generated: Generated
    file: VideoFile
    peak_vram_bytes: int | None
    segments: tuple[dict[str, Any], ...] | None = None
    unfinished: Exception | None = None


def make(video: Video, folder: Path, report: VideoReport, *, engine: Engine, stop: Stop) -> Made:
    """Generate and encode one video into `folder`. Blocks; runs in the GPU's thread.

    Raises the reason of `stop` within one step or frame, and what the engine and the encoder raise.
    """
    request = video.request
    report.waited()
    device.reset_peak()
    logger.info("video %d: %s, prompt %s", request.index, request.mode, fingerprint(video.prompt))
    with report.rendering() as rendered:
        rendering = engine.generate(video, watcher=report, stop=stop)
        rendered.update(rendering.seconds)
    generated = Generated(rendering.shape, rendering.parameters, rendering.warnings, rendering.cold_start)
    if request.preview.only:
        report.gpu_released()
        return Made(video, generated, _unmade(request, rendering.shape), device.peak_bytes())
    with report.stage("encode"), closing(rendering.frames()) as frames:
        file = encoded(frames, request, rendering.shape, folder, report, stop.check)
    report.gpu_released()
    return Made(video, generated, file, device.peak_bytes())


def _unmade(request: VideoRequest, shape: Shape) -> VideoFile:
    return VideoFile(Path(), None, shape.width, shape.height, shape.num_frames, request.fps, size_bytes=0, sha256="")


def encoded(
    generated: Generator[np.ndarray],
    request: VideoRequest,
    shape: Shape,
    folder: Path,
    report: VideoReport,
    check: Callable[[], None],
    sound: Path | None = None,
) -> VideoFile:
    """The file that the request asks for, at its own frame rate, with `sound` and what is wanted beside it.

    `check` may raise to stop the encode.
    """
    output = request.output
    rate = formats.frame_rate(output, request.fps)
    frames, num_frames = interpolate.at_rate(
        generated, num_frames=shape.num_frames, fps=request.fps, target=rate, check=check
    )

    def on_frame(done: int) -> None:
        check()
        report.progress("encoding", done / num_frames)

    return encode(
        frames,
        path=folder / f"{request.index}{FORMATS[output.format].suffix}",
        width=shape.width,
        height=shape.height,
        num_frames=num_frames,
        fps=rate,
        poster=folder / f"{request.index}.jpg" if output.thumbnail else None,
        poster_is_first=request.reference_image_url is not None,
        frames_zip=folder / f"{request.index}.zip" if output.frames_zip else None,
        sound=sound,
        output=output,
        on_frame=on_frame,
    )
