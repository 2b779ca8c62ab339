"""A server that speaks `/v1/videos`: vLLM-Omni, SGLang, LiteLLM's proxy, or the facade of this package.

`on_lost = "resubmit"` is for servers that make one job for one Idempotency-Key, as the facade does.
"""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from openai import AsyncOpenAI
from openai.types import Video

from ..backend import Clip, State
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import FRESH, Service, reading, submitting

_REQUESTS_FAULT = ("invalid", "moderation", "policy", "unsupported", "blocked")


class OpenAIVideos(Service):
    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        super().__init__(name, table, prices, key)
        self._url = (table.base_url or "").rstrip("/")
        # Its own retries would submit a second job.
        options: Any = {"api_key": key or "none", "base_url": self._url, "max_retries": 0, "timeout": 30}
        self._clients = [AsyncOpenAI(**options), AsyncOpenAI(**options, default_headers=FRESH)]
        # Its types know OpenAI's models and sizes alone.
        self._videos: Any = self._clients[0].videos
        self._submissions: Any = self._clients[1].videos

    async def submit(self, request: VideoRequest, key: str, /) -> str:
        image = request.reference_image_url
        own = {
            "prompt": request.prompt,
            "model": self.table.model,
            "seconds": f"{request.duration_seconds:g}",
            "size": f"{request.width}x{request.height}" if request.width and request.height else None,
            "input_reference": None if image is None else {"image_url": image},
            "negative_prompt": request.negative_prompt,
            "fps": request.fps,
            "seed": request.seed,
            "loras": list(request.loras) or None,
        }
        fields = self.fields(request, own)
        known = {
            name: fields.pop(name)
            for name in ("prompt", "model", "seconds", "size", "input_reference")
            if name in fields
        }
        with submitting():
            headers = {"Idempotency-Key": key}
            video = await _quiet(self._submissions.create, **known, extra_body=fields, extra_headers=headers)
        return str(video.id)

    async def status(self, handle: str) -> State:
        with reading():
            video: Video = await _quiet(self._videos.retrieve, handle)
        if video.status in ("queued", "in_progress"):
            return State("queued" if video.status == "queued" else "running")
        if video.status == "completed":
            return State("completed")
        code = "" if video.error is None else video.error.code
        error = "the job failed" if video.error is None else f"{code}: {video.error.message}"
        return State("failed", error=error, retryable=not any(word in code for word in _REQUESTS_FAULT))

    async def cancel(self, handle: str) -> State:
        """These servers have no cancel: deleting a job ends it, and its video is gone."""
        state = await self.status(handle)
        if state.has_ended:
            return state
        with reading():
            answer = await _quiet(self._videos.delete, handle)
        return State("cancelled") if answer.deleted else state

    async def result(self, handle: str) -> Clip:
        with reading():
            video: Video = await _quiet(self._videos.retrieve, handle)
        details = video.model_dump(mode="json", exclude_none=True, exclude={"prompt"})
        return Clip(f"{self._url}/videos/{handle}/content", details)

    def download_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


async def _quiet(call: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
    """The SDK warns that OpenAI's own service has ended. Its dialect goes on in other servers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pending = call(*arguments, **options)
    return await pending
