"""What the caller reads: the video result, the video failure and the answer of a job. Pure functions of frozen values.

Source of the shapes: sections 2 and 4 of the public contract.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from worker.artifacts import Delivery, VideoFile
from worker.errors import WorkerError
from worker.models import ModelSpec
from worker.request import VideoRequest


class Stopwatch:
    """Seconds by stage, in the order in which the stages began; `total` counts from the making of the stopwatch."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def read(self) -> dict[str, float]:
        return {**{name: round(s, 3) for name, s in self._seconds.items()}, "total": round(self.total(), 3)}

    def total(self) -> float:
        return time.perf_counter() - self._began


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
    """The result of one delivered video. `parameters` is what the engine settled itself."""
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
        "parameters": {**_requested(request, video), **parameters},
        "warnings": [*request.warnings, *warnings],
        "size_bytes": video.size_bytes,
        "sha256": video.sha256,
        "timings": dict(timings),
        "gpu": gpu,
        "cost_usd": cost_usd,
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


def job_answer(job_id: str, videos: Sequence[Mapping[str, Any]], total_s: float) -> dict[str, Any]:
    """The answer of a job that started. `error` is a JSON string, the only form that RunPod takes for one."""
    delivered = sum(video["status"] == "completed" for video in videos)
    status = "completed" if delivered == len(videos) else "partial" if delivered else "failed"
    answer: dict[str, Any] = {
        "job_id": job_id,
        "status": status,
        "videos": [dict(video) for video in videos],
        "timings": {"total": round(total_s, 3)},
    }
    if not delivered:
        answer["error"] = json.dumps(videos[0]["error"], ensure_ascii=False)
    return answer


def refused_answer(job_id: str, error: WorkerError, total_s: float) -> dict[str, Any]:
    """The answer of a job that could not start."""
    return {
        "job_id": job_id,
        "status": "failed",
        "videos": [],
        "timings": {"total": round(total_s, 3)},
        "error": json.dumps(error.as_dict(), ensure_ascii=False),
    }
