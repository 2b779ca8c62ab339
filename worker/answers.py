"""What the caller reads: the video result, the video failure and the answer of a job. Pure functions of frozen values.

Source of the shapes: sections 2 and 4 of the public contract.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from worker.artifacts import Delivery, VideoFile
from worker.errors import WorkerError
from worker.models import ModelSpec
from worker.request import VideoRequest

WAITING = "waiting"
RETRY = "retry"
"""What was lost to tries of a video that failed and were made again: for lack of memory, or for NaN."""


class Stopwatch:
    """Where the seconds of one video, or of one job, went: each moment from its making on belongs to one stage.

    What no stage claims is `waiting`: for the GPU's turn, for a thread. Used by one thread at a time.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._mark = clock()
        self._seconds: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        """Everything since the last lap was `stage`."""
        self._add(stage, self._since_mark())

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What happens inside is the stage, also where it fails."""
        self.lap(WAITING)
        try:
            yield
        finally:
            self.lap(name)

    def split(self, stages: Mapping[str, float], *, around: str = WAITING) -> None:
        """Everything since the last lap was these stages, measured by whoever did them, and `around` what is left."""
        lap_s = self._since_mark()
        for stage, seconds in stages.items():
            self._add(stage, seconds)
        self._add(around, max(0.0, lap_s - sum(stages.values())))

    def seconds(self) -> dict[str, float]:
        """By stage, up to the last lap, unrounded."""
        return dict(self._seconds)

    def worked_s(self) -> float:
        """Seconds of all stages but waiting, up to the last lap."""
        return sum(seconds for stage, seconds in self._seconds.items() if stage != WAITING)

    def read(self) -> dict[str, float]:
        """Seconds in the order in which the stages began, then `waiting`, then `total`, their sum; in milliseconds."""
        rounded = {stage: round(seconds, 3) for stage, seconds in self._seconds.items()}
        waiting = rounded.pop(WAITING, 0.0)
        return {**rounded, WAITING: waiting, "total": round(sum(rounded.values()) + waiting, 3)}

    def _since_mark(self) -> float:
        now = self._clock()
        seconds, self._mark = now - self._mark, now
        return seconds

    def _add(self, stage: str, seconds: float) -> None:
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


def video_result(
    *,
    job_id: str,
    request: VideoRequest,
    spec: ModelSpec,
    prompt: str,
    parameters: Mapping[str, Any],
    warnings: Sequence[str],
    video: VideoFile,
    delivery: Delivery,
    timings: Mapping[str, float],
    gpu: str,
    cost_usd: float | None,
) -> dict[str, Any]:
    """The result of one delivered video. `parameters` is what the engine settled itself.

    How the first video's model came into memory (`cold_start`) is no parameter of it, and stands by itself.
    """
    settled = dict(parameters)
    start = {"cold_start": settled.pop("cold_start")} if "cold_start" in settled else {}
    return {
        "index": request.index,
        "status": "completed",
        "job_id": job_id,
        "video_url": delivery.video_url,
        "thumbnail_url": delivery.thumbnail_url,
        "duration_seconds": round(video.duration_seconds, 3),
        "num_frames": video.num_frames,
        "resolution": f"{video.width}x{video.height}",
        "fps": video.fps,
        "seed": request.seed,
        "prompt": prompt,
        "negative_prompt": request.negative_prompt,
        "model_version": spec.version,
        "mode": request.mode,
        "parameters": {**_requested(request, video), **settled},
        "warnings": [*request.warnings, *warnings],
        "size_bytes": video.size_bytes,
        "sha256": video.sha256,
        "timings": dict(timings),
        "gpu": gpu,
        "cost_usd": cost_usd,
        **start,
    }


def cost_usd(seconds: float, gpu_hourly_usd: float | None) -> float | None:
    """What the GPU cost for `seconds`; None where the operator has not set its price."""
    return None if gpu_hourly_usd is None else round(seconds / 3600 * gpu_hourly_usd, 6)


def _requested(request: VideoRequest, video: VideoFile) -> dict[str, Any]:
    """Every effective value of the request but the texts and URLs, which the result holds elsewhere or not at all."""
    values: dict[str, Any] = {
        "model": request.model,
        "width": video.width,
        "height": video.height,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "flow_shift": request.flow_shift,
        "seed": request.seed,
        "camera_motion": request.camera_motion,
        "enhance_prompt": request.enhance_prompt,
        "quality_preset": request.quality_preset,
        "loras": [{"scale": lora.scale, "expert": lora.expert} for lora in request.loras],
        "thumbnail": request.thumbnail,
    }
    if request.mode == "video_to_video":
        values["strength"] = request.strength
    return values


def video_failure(job_id: str, index: int | None, error: WorkerError) -> dict[str, Any]:
    return {"index": index, "status": "failed", "job_id": job_id, "error": error.as_dict()}


def job_answer(job_id: str, videos: Sequence[Mapping[str, Any]], timings: Mapping[str, float]) -> dict[str, Any]:
    """The answer of a job that started. `error` is a JSON string, the only form that RunPod takes for one."""
    delivered = sum(video["status"] == "completed" for video in videos)
    status = "completed" if delivered == len(videos) else "partial" if delivered else "failed"
    answer: dict[str, Any] = {
        "job_id": job_id,
        "status": status,
        "videos": [dict(video) for video in videos],
        "timings": dict(timings),
    }
    if not delivered:
        answer["error"] = json.dumps(videos[0]["error"], ensure_ascii=False)
    return answer


def refused_answer(job_id: str, error: WorkerError, timings: Mapping[str, float]) -> dict[str, Any]:
    """The answer of a job that could not start."""
    return {
        "job_id": job_id,
        "status": "failed",
        "videos": [],
        "timings": dict(timings),
        "error": json.dumps(error.as_dict(), ensure_ascii=False),
    }
