"""What the caller reads: the video result, the video failure and the answer of a job. Pure functions of frozen values.

Source of the shapes: sections 2 and 4 of the public contract.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from worker.base.errors import WorkerError
from worker.delivery.storage.base import Delivery
from worker.jobs.make import Made
from worker.request import VideoRequest
from worker.request.plan import Shape


def video_result(
    made: Made,
    delivery: Delivery,
    *,
    job_id: str,
    timings: Mapping[str, float],
    gpu: str,
    cost_usd: float | None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The result of one delivered video; `notes` are warnings about its delivery.

    The first one of a worker says how its model was loaded (`cold_start`).
    """
    request, generated, video = made.video.request, made.generated, made.file
    provenance = video.provenance
    return {
        "index": request.index,
        "status": "completed",
        "job_id": job_id,
        "video_url": None if request.preview.only else delivery.video_url or None,
        "thumbnail_url": delivery.thumbnail_url,
        **({"frames_url": delivery.frames_url} if request.output.frames_zip and not request.preview.only else {}),
        **({"preview_url": delivery.preview_url} if request.preview.kind != "off" else {}),
        "duration_seconds": round(video.duration_seconds, 3),
        "num_frames": video.num_frames,
        "resolution": f"{video.width}x{video.height}",
        "fps": video.fps,
        "seed": request.seed,
        "prompt": made.video.prompt,
        "negative_prompt": request.negative_prompt,
        "model_version": made.video.spec.version,
        "mode": request.mode,
        "parameters": {**_requested(request, generated.shape), **generated.parameters},
        "warnings": [*request.warnings, *generated.warnings, *(provenance.notes if provenance else ()), *notes],
        "size_bytes": video.size_bytes,
        "sha256": video.sha256,
        "timings": dict(timings),
        "gpu": gpu,
        "cost_usd": cost_usd,
        "provenance": None if provenance is None else provenance.as_dict(),
        **({} if generated.cold_start is None else {"cold_start": dict(generated.cold_start)}),
        **({} if made.segments is None else {"segments": list(made.segments)}),
    }


def _requested(request: VideoRequest, shape: Shape) -> dict[str, Any]:
    """Every effective value of the request but the texts and URLs, which the result holds elsewhere or not at all.

    `num_frames` and `fps` are those that were generated; the file has others where `target_fps` was given.
    """
    output = request.output
    values: dict[str, Any] = {
        "model": request.model,
        "width": shape.width,
        "height": shape.height,
        "num_frames": shape.num_frames,
        "fps": request.fps,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "guidance_scale_2": request.guidance_scale_2,
        "guidance_until": request.guidance_until,
        "flow_shift": request.flow_shift,
        "seed": request.seed,
        "camera_motion": request.camera_motion,
        "enhance_prompt": request.enhance_prompt,
        "prompt_expansion": request.prompt_expansion,
        "quality_preset": request.quality_preset,
        "loras": [{"scale": lora.scale, "expert": lora.expert} for lora in request.loras],
        "output_format": output.format,
        "output_codec": output.codec,
        "video_quality": output.quality,
        "target_fps": output.target_fps,
        "frames_zip": output.frames_zip,
        "thumbnail": output.thumbnail,
        "preview": request.preview.kind,
        "preview_at": list(request.preview.at),
        "preview_only": request.preview.only,
    }
    if request.mode == "video_to_video":
        values["strength"] = request.strength
    if (chain := request.chain) is not None:
        values |= {
            "continuity": chain.continuity,
            "overlap_frames": chain.overlap_frames,
            "loop": chain.loop,
            "color_match": chain.color_match,
        }
    return values


def with_file(result: Mapping[str, Any], content: bytes) -> dict[str, Any]:
    """The result as the answer has it where the file is to be in there."""
    return {**result, "video_base64": base64.b64encode(content).decode("ascii")}


def without_file(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result as webhooks have it."""
    return {name: value for name, value in result.items() if name != "video_base64"}


def video_failure(job_id: str, index: int | None, error: WorkerError) -> dict[str, Any]:
    """The failure of one video, or of a job that could not start, for its webhook."""
    return {"index": index, "status": "failed", "job_id": job_id, "error": error.as_dict(), **error.several()}


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
        **error.several(),
    }
