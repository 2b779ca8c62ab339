"""Where the seconds go: a line in the log and an observation for each stage, each video and each job.

In JSON each line carries its figures as fields beside the message: `stage`, `seconds`, `video` (its index) and so on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from worker.base import metrics
from worker.base.errors import WorkerError
from worker.base.log import fields
from worker.request import VideoRequest

logger = logging.getLogger(__name__)


def video_completed(
    request: VideoRequest, result: Mapping[str, Any], *, gpu_seconds: float, peak_vram_bytes: int | None
) -> None:
    """A video is made, stored and told: where its seconds went, and what it took."""
    timings, cost_usd = result["timings"], result["cost_usd"]
    logger.info(
        "video %d: completed in %.3f s (%s), %s",
        *(request.index, timings["total"], _shares(timings), _taken(peak_vram_bytes, cost_usd)),
        extra=fields(
            **_of(request),
            outcome="completed",
            seconds=timings["total"],
            timings=timings,
            gpu_seconds=round(gpu_seconds, 3),
            peak_vram_bytes=peak_vram_bytes,
            cost_usd=cost_usd,
            size_bytes=result["size_bytes"],
        ),
    )
    metrics.video(request.mode, request.model, "completed")
    metrics.peak_vram(request.model, peak_vram_bytes)
    metrics.gpu_held("completed", gpu_seconds, cost_usd)


def video_failed(
    request: VideoRequest,
    error: WorkerError,
    timings: Mapping[str, float],
    *,
    gpu_seconds: float,
    cost_usd: float | None,
) -> None:
    """A video failed, why, and what it cost until then."""
    logger.warning(
        "video %d failed: %s: %s; in %.3f s (%s), %s",
        *(request.index, error.code, error, timings["total"], _shares(timings), _taken(None, cost_usd)),
        extra=fields(
            **_of(request),
            outcome="failed",
            code=error.code,
            path=error.path,
            reason=error.message,
            seconds=timings["total"],
            timings=dict(timings),
            gpu_seconds=round(gpu_seconds, 3),
            cost_usd=cost_usd,
        ),
    )
    metrics.video(request.mode, request.model, "failed", error.code)
    metrics.gpu_held("failed", gpu_seconds, cost_usd)


def video_again(request: VideoRequest) -> None:
    """A video that an earlier delivery of the job had made was told again."""
    logger.info("video %d: made by an earlier delivery", request.index, extra=fields(**_of(request), outcome="again"))
    metrics.video(request.mode, request.model, "again")


def video_left(request: VideoRequest, *, gpu_seconds: float, cost_usd: float | None) -> None:
    """A shutdown leaves a video to the next delivery of its job, which makes it from its beginning."""
    figures = fields(**_of(request), outcome="left", gpu_seconds=round(gpu_seconds, 3), cost_usd=cost_usd)
    logger.info("video %d: left for the next delivery of the job", request.index, extra=figures)
    metrics.video(request.mode, request.model, "left")
    metrics.gpu_held("left", gpu_seconds, cost_usd)


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
    """A job is answered. `cost_usd` is that of all its videos; `code` why no video was begun."""
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


def _of(request: VideoRequest) -> dict[str, object]:
    return {"video": request.index, "mode": request.mode, "model": request.model}


def _shares(timings: Mapping[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:g}" for stage, seconds in timings.items() if stage != "total")


def _taken(peak_vram_bytes: int | None, cost_usd: float | None) -> str:
    vram = None if peak_vram_bytes is None else f"peak VRAM {peak_vram_bytes / metrics.GIB:.1f} GiB"
    cost = "cost unknown" if cost_usd is None else f"{cost_usd:g} USD"
    return f"{vram}, {cost}" if vram is not None else cost
