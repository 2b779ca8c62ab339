"""One video on the GPU: prompt, latents, frames, file."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.base import timing
from worker.base.log import fingerprint
from worker.base.stop import Stop
from worker.base.timing import RETRY, WAITING, Stopwatch
from worker.engine import Engine, Rendering, device
from worker.jobs.prepare import Prepared
from worker.jobs.progress import Progress
from worker.media import VideoFile
from worker.media.encode import encode
from worker.request import VideoRequest, prompt

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """A video that is encoded and waits to be stored.

    `gpu_seconds`: how long it held the GPU or its turn for it, its inputs being fetched; not what it waited for others.
    `peak_vram_bytes` is None on a CPU.
    """

    request: VideoRequest
    prompt: str
    rendering: Rendering
    file: VideoFile
    stopwatch: Stopwatch
    gpu_seconds: float
    peak_vram_bytes: int | None


def make(
    prepared: Prepared,
    folder: Path,
    stopwatch: Stopwatch,
    *,
    engine: Engine,
    progress: Progress,
    stop: Stop,
    following: Sequence[VideoRequest] = (),
) -> Made:
    """Generate and encode one video into `folder`. Blocks; runs in the GPU's thread. `following` are the job's next
    ones: the texts of those like this one are read with its own.

    Raises the reason of `stop` within one step or frame, and what the engine and the encoder raise.
    """
    video = prepared.request
    stopwatch.lap(WAITING)
    device.reset_peak()
    text = _text_of(video)
    logger.info("video %d: %s, prompt %s", video.index, video.mode, fingerprint(text))
    watcher = _Watcher(progress, video.index)
    try:
        rendering = engine.generate(
            video,
            text,
            prepared.conditioning,
            loras=prepared.loras,
            distilled=prepared.distilled,
            watcher=watcher,
            stop=stop,
            later=_texts(video, following),
        )
    except BaseException:
        stopwatch.split(watcher.lost(), around=watcher.stage)
        raise
    took = {**watcher.lost(), **rendering.seconds}
    stopwatch.split(took)
    for stage, seconds in took.items():
        timing.took(video.index, stage, seconds)

    def on_frame(done: int) -> None:
        stop.check()
        progress.stage(video.index, "encoding", done / rendering.num_frames)

    with stopwatch.stage("encode"), timing.timed(video.index, "encode"):
        file = encode(
            rendering.frames(),
            path=folder / f"{video.index}.mp4",
            width=rendering.width,
            height=rendering.height,
            num_frames=rendering.num_frames,
            fps=video.fps,
            poster=folder / f"{video.index}.jpg" if video.thumbnail else None,
            on_frame=on_frame,
        )
    return Made(video, text, rendering, file, stopwatch, stopwatch.worked_s(), device.peak_bytes())


def _text_of(video: VideoRequest) -> str:
    return prompt.compose(video.prompt, camera_motion=video.camera_motion, enhance=video.enhance_prompt)


def _texts(video: VideoRequest, following: Sequence[VideoRequest]) -> list[str]:
    """What the text encoder will be asked for by those of `following` that the same model serves."""

    def kind(each: VideoRequest) -> tuple[object, ...]:
        return each.model, each.mode, each.quality_preset, each.height, each.width, each.num_frames

    alike = [each for each in following if kind(each) == kind(video)]
    guided = [each for each in alike if max(each.guidance_scale, each.guidance_scale_2) > 1]
    return [*map(_text_of, alike), *(each.negative_prompt for each in guided)]


class _Watcher:
    """Passes what the engine does on to the progress of one video; `stage` is the one in hand."""

    def __init__(self, progress: Progress, index: int) -> None:
        self._progress = progress
        self._index = index
        self._tries_began: list[float] = []
        self._step = 0
        self.stage = "load"

    def lost(self) -> dict[str, float]:
        """Seconds of the tries before the last one, under the name of their stage; nothing where there was one try."""
        began = self._tries_began
        return {RETRY: began[-1] - began[0]} if len(began) > 1 else {}

    def loading(self, fraction: float) -> None:
        if fraction == 0.0:
            self._tries_began.append(time.perf_counter())
            self.stage = "load"
        self._progress.stage(self._index, "loading", fraction)

    def generating(self, fraction: float) -> None:
        self.stage = "generate"
        # Each call but the first ends one step, and `fraction` is the share of the steps that are done.
        self._step = self._step + 1 if fraction > 0 else 0
        steps = round(self._step / fraction) if self._step else None
        self._progress.stage(self._index, "generating", fraction, step=self._step or None, steps=steps)
