"""The router in the place of a client: what the facade of `/v1/videos` needs of what makes the videos.

A payload is the worker's `Input` of one video, with `tier`, `tenant`, `audio`, `max_cost_usd`, `deadline_s`,
`extras` beside it. What only this worker has, such as `num_inference_steps`, goes to the backends that are this worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import httpx

from ..downloads import File
from ..errors import CancelRefused, DownloadFailed, EndpointUnavailable, JobNotFound, JobRefused, Timeout, VideoFailed
from ..errors import Job as ClientJob
from ..state import JobState
from ..types import Answer, Input, VideoFailure, VideoResult
from .errors import BackendError, JobUnknown, KeyReused, NoCandidate, RequestRefused
from .jobs import Job
from .request import VideoRequest
from .router import Router

_WORKER_ALONE = ("job_id", "webhook_url", "webhook_events")


class RoutedClient:
    """The calls of `AsyncClient` that the facade makes. `router` is entered at the first one, and left by `close`."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._entering = asyncio.Lock()
        self._is_entered = False

    async def submit(self, payload: Input, *, timeout_s: float) -> ClientJob:
        """The same `job_id` is the same job. Raises JobRefused."""
        router = await self._entered()
        fields = cast(Mapping[str, Any], payload)
        try:
            submission = router.submit(self._request_of(fields), key=fields["job_id"])
            return ClientJob(await asyncio.wait_for(submission, timeout_s), fields["job_id"])
        except (RequestRefused, KeyReused) as failure:
            raise JobRefused("invalid_request", failure.message) from failure
        except NoCandidate as failure:
            raise JobRefused("unsupported", failure.message) from failure
        except TimeoutError as failure:
            raise EndpointUnavailable("the router's store does not answer") from failure

    async def status(self, job: ClientJob, *, timeout_s: float) -> JobState:
        """Raises JobNotFound."""
        router = await self._entered()
        try:
            return state_of(await asyncio.wait_for(router.job(job.id), timeout_s))
        except JobUnknown as failure:
            raise JobNotFound(failure.message, job=job) from failure
        except TimeoutError as failure:
            raise EndpointUnavailable("the router's store does not answer") from failure

    async def cancel(self, job: ClientJob, *, timeout_s: float) -> JobState:
        """Raises CancelRefused where no service confirms it in time, and JobNotFound."""
        router = await self._entered()
        try:
            await router.cancel(job.id)
            return state_of(await router.result(job.id, timeout_s=timeout_s))
        except JobUnknown as failure:
            raise JobNotFound(failure.message, job=job) from failure
        except Timeout as failure:
            raise CancelRefused("no service confirms the cancel: the job runs on", job=job) from failure

    async def download(self, video: VideoResult | VideoFailure, path: Path, *, file: File, timeout_s: float) -> Path:
        """Raises DownloadFailed and OSError."""
        router = await self._entered()
        found = cast(Mapping[str, Any], video)
        part = path.with_name(f".{path.name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if file == "video":
                await asyncio.wait_for(router.download(found["routed_job"], part), timeout_s)
            else:
                await _fetch(found.get(f"{file}_url"), part, timeout_s)
        except (BackendError, TimeoutError, httpx.HTTPError) as failure:
            part.unlink(missing_ok=True)
            raise DownloadFailed(f"the {file} could not be fetched: {type(failure).__name__}") from failure
        return part.replace(path)

    async def close(self) -> None:
        if self._is_entered:
            await self._router.__aexit__(None, None, None)

    async def _entered(self) -> Router:
        async with self._entering:
            if not self._is_entered:
                await self._router.__aenter__()
                self._is_entered = True
        return self._router

    def _request_of(self, payload: Mapping[str, Any]) -> VideoRequest:
        fields = {name: value for name, value in payload.items() if name in VideoRequest.model_fields}
        if fields.get("seed") == -1:
            del fields["seed"]
        others = {name: value for name, value in payload.items() if name not in (*fields, *_WORKER_ALONE, "seed")}
        extras = dict(fields.get("extras", {}))
        for name in self._router.workers if others else ():
            extras[name] = {**others, **extras.get(name, {})}
        return VideoRequest.read({**fields, "extras": extras})


def state_of(job: Job) -> JobState:
    """As an endpoint of RunPod would report it."""
    if job.status == "open":
        is_sent = job.current is not None and job.current.handle is not None
        return JobState(job.id, "IN_PROGRESS" if is_sent else "IN_QUEUE")
    if job.status == "completed" and job.result is not None:
        return JobState(job.id, "COMPLETED", answer=_answer_of(job, job.result))
    if job.status == "cancelled":
        return JobState(job.id, "CANCELLED", error=VideoFailed("cancelled", "the job was cancelled", retryable=True))
    error = {"code": job.status, "message": "the job has no video", "retryable": False, **(job.error or {})}
    return JobState(job.id, "FAILED", error=VideoFailed(error["code"], error["message"], retryable=error["retryable"]))


def _answer_of(job: Job, result: Mapping[str, Any]) -> Answer:
    video = {
        "index": 0,
        "thumbnail_url": None,
        "seed": job.request.seed,
        "duration_seconds": job.request.duration_seconds,
        **result["details"],
        "status": "completed",
        "job_id": job.key,
        "video_url": result["video_url"],
        "cost_usd": job.spent_usd,
        "backend": result["backend"],
        "route": list(job.route),
        "routed_job": job.id,
    }
    return cast(Answer, {"job_id": job.key, "status": "completed", "videos": [video], "timings": {}})


async def _fetch(url: object, path: Path, timeout_s: float) -> None:
    if not isinstance(url, str):
        raise DownloadFailed("the service has no such file", retryable=False)
    async with httpx.AsyncClient(follow_redirects=True, timeout=timeout_s) as http:
        reply = await http.get(url)
        path.write_bytes(reply.raise_for_status().content)
