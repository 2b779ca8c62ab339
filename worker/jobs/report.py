"""What is reported of a video and of a job: where the seconds go, how it ended, what it cost.

In JSON each line carries its figures as fields beside the message: `stage`, `seconds`, `video` (its index) and so on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from worker.base import metrics, timing
from worker.base.errors import WorkerError
from worker.base.log import fields
from worker.base.timing import RETRY, WAITING, Stopwatch
from worker.delivery.webhooks.progress_sender import Status
from worker.engine import Preview
from worker.jobs.progress import Progress
from worker.request import VideoRequest

logger = logging.getLogger(__name__)
_STATUS_OF: Mapping[str, Status] = {"inputs": "loading", "upload": "uploading"}


class Previews(Protocol):
    """Takes the previews of a job's videos (`worker.jobs.previews`); returns at once."""

    def offer(self, request: VideoRequest, preview: Preview) -> None: ...


class VideoReport:
    """Reports one video: its stopwatch, its lines in the log, its metrics and its progress, each stage at once.

        with report.stage("encode"):
            ...

    The stages are those of a result's `timings`. It is the engine's watcher too (`worker.engine.Watcher`). Used by one
    thread at a time; never raises of itself.
    """

    def __init__(
        self,
        request: VideoRequest,
        progress: Progress,
        gpu_hourly_usd: float | None = None,
        previews: Previews | None = None,
    ) -> None:
        self._previews = previews
        self._request = request
        self._progress = progress
        self._gpu_hourly_usd = gpu_hourly_usd
        self._stopwatch = Stopwatch()
        self._gpu_seconds: float | None = None
        self._tries_began: list[float] = []
        self._step = 0
        self._part = (0.0, 1.0)
        self._steps_began = 0.0
        self._in_hand = "load"

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, object]]:
        """What happens inside is the stage, also where it fails. It yields further fields of its line in the log."""
        with self.lapped(name), timing.timed(self._request.index, name) as figures:
            yield figures

    @contextmanager
    def lapped(self, name: str) -> Iterator[None]:
        """As `stage`, for work that reports itself to log and metrics elsewhere."""
        if name in _STATUS_OF:
            self.progress(_STATUS_OF[name])
        with self._stopwatch.stage(name):
            yield

    @contextmanager
    def rendering(self) -> Iterator[dict[str, float]]:
        """Around the engine's work, whose own seconds by stage are to be put into what this yields.

        Seconds of tries before the last one are `retry`; where the engine fails, the rest is the current stage.
        """
        seconds: dict[str, float] = {}
        self._tries_began.clear()
        try:
            yield seconds
        except BaseException:
            self._stopwatch.split(self._lost(), around=self._in_hand)
            raise
        took = {**self._lost(), **seconds}
        self._stopwatch.split(took)
        for name, value in took.items():
            timing.took(self._request.index, name, value)

    def waited(self) -> None:
        """Everything since the last stage was waiting for the GPU's turn."""
        self._stopwatch.lap(WAITING)

    def gpu_released(self) -> None:
        """The video does not hold the GPU any more: its later stages cost nothing. Only the first call counts."""
        if self._gpu_seconds is None:
            self._gpu_seconds = self._stopwatch.worked_s()

    def part(self, begins: float, share: float) -> None:
        """What is generated from now on is this share of the video: one segment of several."""
        self._part = (begins, share)

    def progress(self, status: Status, fraction: float = 0.0) -> None:
        self._progress.stage(self._request.index, status, fraction)

    def loading(self, fraction: float) -> None:
        """The engine's watcher: a share of 0.0 begins a try."""
        if fraction == 0.0:
            self._tries_began.append(time.perf_counter())
            self._in_hand = "load"
        self.progress("loading", fraction)

    def generating(self, fraction: float) -> None:
        """The engine's watcher."""
        self._in_hand = "generate"
        # Each call but the first ends one step, and `fraction` is the share of the steps that are done.
        if fraction <= 0:
            self._step, self._steps_began = 0, time.perf_counter()
            self._progress.stage(self._request.index, "generating", self._part[0])
            return
        self._step += 1
        begins, share = self._part
        done = begins + share * fraction
        left_s = (time.perf_counter() - self._steps_began) * (1 - done) / (share * fraction)
        self._progress.stage(
            self._request.index,
            "generating",
            done,
            step=self._step,
            steps=round(self._step / fraction),
            eta_seconds=round(left_s, 1),
        )

    def preview(self, preview: Preview) -> None:
        """The engine's watcher."""
        if self._previews is not None:
            self._previews.offer(self._request, preview)

    def seconds(self) -> dict[str, float]:
        """By stage, unrounded."""
        return self._stopwatch.seconds()

    def timings(self) -> dict[str, float]:
        """By stage, as a result has them."""
        return self._stopwatch.read()

    @property
    def gpu_seconds(self) -> float:
        """How long the video held the GPU or its turn for it, its inputs included; not what it waited for others."""
        return self._stopwatch.worked_s() if self._gpu_seconds is None else self._gpu_seconds

    @property
    def cost_usd(self) -> float | None:
        return timing.cost_usd(self.gpu_seconds, self._gpu_hourly_usd)

    def completed(self, result: Mapping[str, Any], peak_vram_bytes: int | None) -> None:
        """The video is stored and its event was sent. `result` is what the caller reads."""
        timings = result["timings"]
        logger.info(
            "video %d: completed in %.3f s (%s), %s",
            *(self._request.index, timings["total"], _shares(timings), _taken(peak_vram_bytes, self.cost_usd)),
            extra=self._figures("completed", timings, peak_vram_bytes=peak_vram_bytes, size_bytes=result["size_bytes"]),
        )
        metrics.peak_vram(self._request.model, peak_vram_bytes)
        self._count("completed")

    def failed(self, error: WorkerError) -> None:
        timings = self.timings()
        logger.warning(
            "video %d failed: %s: %s; in %.3f s (%s), %s",
            *(self._request.index, error.code, error, timings["total"], _shares(timings), _taken(None, self.cost_usd)),
            extra=self._figures("failed", timings, code=error.code, path=error.path, reason=error.message),
        )
        self._count("failed", error.code)

    def left(self) -> None:
        """A shutdown leaves the video to the next delivery of its job, which makes it from its beginning."""
        logger.info(
            "video %d: left for the next delivery of the job", self._request.index, extra=self._figures("left", None)
        )
        self._count("left")

    def again(self) -> None:
        """The video was made by an earlier delivery of the job, and its event was sent again."""
        request = self._request
        line = fields(video=request.index, mode=request.mode, model=request.model, outcome="again")
        logger.info("video %d: made by an earlier delivery", request.index, extra=line)
        metrics.video(request.mode, request.model, "again")

    def _figures(self, outcome: str, timings: Mapping[str, float] | None, **more: object) -> dict[str, Any]:
        request = self._request
        return fields(
            video=request.index,
            mode=request.mode,
            model=request.model,
            outcome=outcome,
            seconds=None if timings is None else timings["total"],
            timings=timings,
            gpu_seconds=round(self.gpu_seconds, 3),
            cost_usd=self.cost_usd,
            **more,
        )

    def _count(self, outcome: metrics.CostOf, code: str = metrics.NO_CODE) -> None:
        metrics.video(self._request.mode, self._request.model, outcome, code)
        metrics.gpu_held(outcome, self.gpu_seconds, self.cost_usd)

    def _lost(self) -> dict[str, float]:
        """Seconds of the tries before the last one; nothing where there was one try."""
        began = self._tries_began
        return {RETRY: began[-1] - began[0]} if len(began) > 1 else {}


def job_left(videos: int, seconds: float) -> None:
    """A shutdown leaves so many videos of a job to its next delivery."""
    logger.warning(
        "%d video(s) are left for the next delivery of the job",
        videos,
        extra=fields(status="left", seconds=round(seconds, 3)),
    )
    metrics.job("left", metrics.NO_CODE, seconds)


def job_refused(error: WorkerError) -> None:
    """No video of a job was begun, and why."""
    figures = fields(status="refused", code=error.code, path=error.path, reason=error.message)
    logger.warning("refused: %s: %s", error.code, error, extra=figures)


def job_answered(answer: Mapping[str, Any], cost_usd: float | None, *, code: str = metrics.NO_CODE) -> None:
    """A job is answered. `cost_usd` is that of all its videos; `code` says why no video was begun."""
    timings, videos = answer["timings"], answer["videos"]
    delivered = [video for video in videos if video["status"] == "completed"]
    code = next((video["error"]["code"] for video in videos if video["status"] == "failed"), code)
    reason = "" if code == metrics.NO_CODE else f" ({code})"
    logger.info(
        "answered: %s%s in %.3f s (%s), %d of %d video(s), %s",
        *(answer["status"], reason, timings["total"], _shares(timings), len(delivered), len(videos)),
        _taken(None, cost_usd),
        extra=fields(
            status=answer["status"],
            code=code,
            seconds=timings["total"],
            timings=timings,
            videos=len(videos),
            delivered=len(delivered),
            cost_usd=cost_usd,
        ),
    )
    metrics.job(answer["status"], code, timings["total"])


def _shares(timings: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:g}" for stage, seconds in timings.items() if stage != "total")


def _taken(peak_vram_bytes: int | None, cost_usd: float | None) -> str:
    vram = None if peak_vram_bytes is None else f"peak VRAM {peak_vram_bytes / metrics.GIB:.1f} GiB"
    cost = "cost unknown" if cost_usd is None else f"{cost_usd:g} USD"
    return f"{vram}, {cost}" if vram is not None else cost
