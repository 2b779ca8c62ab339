"""Runway, by its official client. `model` is one of theirs, such as `gen4.5` or `veo3.1`.

It has neither an idempotency key nor a list of tasks: a lost answer stays unknown. Deleting a task that runs gives no
money back, and its video is gone: only a task that waits is cancelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runwayml import AsyncRunwayML

from ..backend import Clip, State
from ..errors import Gone, Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import FRESH, Service, reading, submitting

_WAITING = ("PENDING", "THROTTLED")
_REQUESTS_FAULT = ("SAFETY", "INPUT", "ASSET")


class Runway(Service):
    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        super().__init__(name, table, prices, key)
        # Its own retries would submit a second task.
        options: Any = {"api_key": self.key, "base_url": table.base_url, "max_retries": 0, "timeout": 30}
        self._client = AsyncRunwayML(**options)
        self._submissions = AsyncRunwayML(**options, default_headers=FRESH)

    async def submit(self, request: VideoRequest, _key: str, /) -> str:
        image = request.reference_image_url
        own = {
            "model": self.model,
            "promptText": request.prompt,
            "promptImage": image,
            "ratio": f"{request.width}:{request.height}" if request.width and request.height else None,
            "duration": round(request.duration_seconds),
            "seed": request.seed,
            "audio": request.audio if self.table.audio else None,
        }
        path = "/v1/text_to_video" if image is None else "/v1/image_to_video"
        with submitting():
            made: Any = await self._submissions.post(path, body=self.fields(request, own), cast_to=object)
            return str(made["id"])

    async def status(self, handle: str) -> State:
        return _state_of(await self._task(handle))

    async def cancel(self, handle: str) -> State:
        task = await self._task(handle)
        if task.status not in _WAITING:
            return _state_of(task)
        with reading():
            await self._client.tasks.delete(handle)
        try:
            return await self.status(handle)
        except Gone:
            return State("cancelled")  # what it cost can no longer be read: it counts with its price

    async def result(self, handle: str) -> Clip:
        task = await self._task(handle)
        if not getattr(task, "output", None):
            raise Unreadable("the task has no video")
        return Clip(task.output[0], {"id": task.id, "credits": task.cost.credits})

    async def _task(self, handle: str) -> Any:
        with reading():
            return await self._client.tasks.retrieve(handle)

    async def close(self) -> None:
        await self._client.close()
        await self._submissions.close()


def _state_of(task: Any) -> State:
    """A task that was wholly refunded has cost 0; other credits are not turned into USD."""
    if task.status in (*_WAITING, "RUNNING"):
        return State("running" if task.status == "RUNNING" else "queued")
    cost_usd = 0.0 if task.cost.credits == 0 else None
    if task.status == "SUCCEEDED":
        return State("completed", cost_usd=cost_usd)
    if task.status == "CANCELLED":
        return State("cancelled", cost_usd=cost_usd)
    code = task.failure_code or "FAILED"
    return State("failed", cost_usd=cost_usd, error=code, retryable=not code.startswith(_REQUESTS_FAULT))
