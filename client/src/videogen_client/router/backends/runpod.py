"""This worker, on an endpoint of RunPod. Its journal makes each video once for a `job_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ... import (
    AsyncClient,
    EndpointRefused,
    EndpointUnavailable,
    JobNotFound,
    JobRefused,
    JobState,
    Timing,
    VideoGenError,
)
from ...types import Input, VideoResult
from ..backend import Clip, State
from ..errors import Gone, Lost, Refused, Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import Service

_TIMING = Timing(request_s=20, attempts=1)  # the router repeats what is worth repeating


class RunPodWorker(Service):
    """`model` is the id of the endpoint."""

    lost_by_default = "resubmit"

    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        super().__init__(name, table, prices, key)
        self._client = AsyncClient(self.model, key, base_url=table.base_url, timing=_TIMING)

    async def submit(self, request: VideoRequest, key: str, /) -> str:
        payload = self.fields(
            request,
            {
                "prompt": request.prompt,
                "negative_prompt": request.negative_prompt,
                "reference_image_url": request.reference_image_url,
                "last_image_url": request.last_image_url,
                "reference_video_url": request.reference_video_url,
                "width": request.width,
                "height": request.height,
                "duration_seconds": request.duration_seconds,
                "fps": request.fps,
                "seed": request.seed,
                "loras": list(request.loras) or None,
            },
        )
        try:
            job = await self._client.submit(cast(Input, {**payload, "job_id": key}))
        except JobRefused as failure:
            raise Refused(str(failure), retryable=False) from failure
        except EndpointRefused as failure:
            raise Refused(str(failure)) from failure
        except VideoGenError as failure:
            is_certain = isinstance(failure, EndpointUnavailable) and not failure.may_be_taken
            raise (Refused if is_certain else Lost)(str(failure)) from failure
        return job.id

    async def status(self, handle: str) -> State:
        with _reading():
            return _state_of(await self._client.status(handle))

    async def cancel(self, handle: str) -> State:
        with _reading():
            return _state_of(await self._client.cancel(handle))

    async def result(self, handle: str) -> Clip:
        with _reading():
            video = _video_of(await self._client.status(handle))
        if video is None:
            raise Unreadable("the job has no video")
        return Clip(str(video.get("video_url") or ""), video)

    async def download(self, clip: Clip, path: Path) -> None:
        """Checked against the size and the hash that the worker gives."""
        with _reading():
            await self._client.download(cast(VideoResult, clip.details), path)

    async def close(self) -> None:
        await self._client.close()


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except JobNotFound as failure:
        raise Gone(str(failure)) from failure
    except VideoGenError as failure:
        raise Unreadable(str(failure)) from failure


def _video_of(state: JobState) -> Mapping[str, Any] | None:
    videos = () if state.answer is None else state.answer["videos"]
    return next((cast(Mapping[str, Any], each) for each in videos if each["status"] == "completed"), None)


def _state_of(state: JobState) -> State:
    if not state.has_ended:
        return State("queued" if state.status == "IN_QUEUE" else "running")
    video = _video_of(state)
    if video is not None:
        return State("completed", cost_usd=video.get("cost_usd"))
    if state.status == "CANCELLED":
        return State("cancelled")
    failure = state.error
    if failure is None:
        return State("failed", error="the job ended without a video")
    return State("failed", error=str(failure), retryable=failure.retryable)
