"""fal's queue, by its official client. `model` is the application, such as `fal-ai/wan/v2.2-a14b/text-to-video`.

The submission is a plain request: the client's own would send it again after a broken connection, which makes a second
job. The queue has no idempotency key and no list of jobs, so a lost answer stays unknown, unless a webhook brings it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import httpx
from fal_client import AsyncRequestHandle, Completed, FalClientHTTPError, Queued
from fal_client.client import AppId

from ..backend import Clip, State
from ..errors import Gone, Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import FRESH, Service, reading, submitting, tls

_URL = "https://queue.fal.run"
_LIMITS = httpx.Limits(max_connections=20)  # the pool searches all of them for every request


class Fal(Service):
    """A `webhook_url` among the parameters gets `key` added to its query, for `Router.notice`."""

    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        super().__init__(name, table, prices, key)
        self._url = (table.base_url or _URL).rstrip("/")
        app = AppId.from_endpoint_id(self.model)
        self._app = "/".join(each for each in (app.namespace, app.owner, app.alias) if each)
        headers = {"Authorization": f"Key {self.key}"}
        self._queue = httpx.AsyncClient(headers=headers, verify=tls(), timeout=30, limits=_LIMITS)
        self._submissions = httpx.AsyncClient(headers=headers | FRESH, verify=tls(), timeout=30)

    async def submit(self, request: VideoRequest, key: str, /) -> str:
        own = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "image_url": request.reference_image_url,
            "end_image_url": request.last_image_url,
            "video_url": request.reference_video_url,
            "frames_per_second": request.fps,
            "seed": request.seed,
            "loras": list(request.loras) or None,
        }
        fields = self.fields(request, own)
        webhook_url = fields.pop("webhook_url", None)
        query = "" if webhook_url is None else "?" + urlencode({"fal_webhook": _with_key(webhook_url, key)})
        with submitting():
            reply = await self._submissions.post(f"{self._url}/{self.model}{query}", json=fields)
            reply.raise_for_status()
            return str(reply.json()["request_id"])

    async def status(self, handle: str) -> State:
        request = self._handle(handle)
        with reading():
            status = await request.status()
            if not isinstance(status, Completed):
                return State("queued" if isinstance(status, Queued) else "running")
            if status.error is not None:
                return State(
                    "failed", error=str(status.error_type or status.error), retryable=_is_retryable(status.error_type)
                )
            try:
                await request.get()
            except FalClientHTTPError as failure:
                # The result of a failed job is the status and error that its model returned.
                if failure.error_type is None and failure.status_code != 422:
                    raise
                error = failure.error_type or "the model refused the request"
                return State("failed", error=error, retryable=_is_retryable(failure.error_type, failure.status_code))
        return State("completed")

    async def cancel(self, handle: str) -> State:
        """A job in the queue is removed. One that runs may ignore the signal, and then it goes on."""
        before = await self.status(handle)
        if before.has_ended:
            return before
        with reading():
            try:
                await self._handle(handle).cancel()
            except FalClientHTTPError as failure:
                if failure.status_code != 400:  # it has ended in the meantime
                    raise
        try:
            after = await self.status(handle)
        except Gone:
            if before.status == "queued":
                return State("cancelled", cost_usd=0.0)
            raise
        return State("cancelled") if after.status == "failed" else after

    async def result(self, handle: str) -> Clip:
        with reading():
            output: dict[str, Any] = await self._handle(handle).get()
            video = output.get("video")
        if not isinstance(video, dict) or not isinstance(video.get("url"), str):
            raise Unreadable("the result has no video")
        return Clip(video["url"], {name: value for name, value in output.items() if name != "prompt"})

    def _handle(self, request_id: str) -> AsyncRequestHandle:
        url = f"{self._url}/{self._app}/requests/{request_id}"
        return AsyncRequestHandle(request_id, url, f"{url}/status", f"{url}/cancel", self._queue)

    async def close(self) -> None:
        await self._queue.aclose()
        await self._submissions.aclose()


def _with_key(url: str, key: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode({'key': key})}"


def _is_retryable(error_type: str | None, status: int = 500) -> bool:
    """fal names errors of the input by what is wrong with it: they come back with 422."""
    words = ("policy", "invalid", "image", "file", "unsupported", "missing", "value_error")
    return status != 422 and not any(word in (error_type or "") for word in words)
