"""One video on the GPU: prompt, latents, frames, file."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from worker.base.log import fingerprint
from worker.base.stop import Stop
from worker.engine import Engine, Rendering, Video, device
from worker.jobs.report import VideoReport
from worker.media import VideoFile
from worker.media.encode import encode

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """A video that is encoded and waits to be stored. `peak_vram_bytes` is None on a CPU."""

    video: Video
    rendering: Rendering
    file: VideoFile
    peak_vram_bytes: int | None


def make(video: Video, folder: Path, report: VideoReport, *, engine: Engine, stop: Stop) -> Made:
    """Generate and encode one video into `folder`. Blocks; runs in the GPU's thread.

    Raises the reason of `stop` within one step or frame, and what the engine and the encoder raise.
    """
    request, shape = video.request, video.shape
    report.waited()
    device.reset_peak()
    logger.info("video %d: %s, prompt %s", request.index, request.mode, fingerprint(video.prompt))
    with report.rendering() as rendered:
        rendering = engine.generate(video, watcher=report, stop=stop)
        rendered.update(rendering.seconds)

    def on_frame(done: int) -> None:
        stop.check()
        report.progress("encoding", done / shape.num_frames)

    with report.stage("encode"), closing(rendering.frames()) as frames:
        file = encode(
            frames,
            path=folder / f"{request.index}.mp4",
            width=shape.width,
            height=shape.height,
            num_frames=shape.num_frames,
            fps=request.fps,
            poster=folder / f"{request.index}.jpg" if request.output.thumbnail else None,
            on_frame=on_frame,
        )
    report.gpu_released()
    return Made(video, rendering, file, device.peak_bytes())
