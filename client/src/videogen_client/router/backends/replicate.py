"""Replicate, by its own client. `model` is `owner/name`, or `owner/name:version`.

Replicate has no idempotency key, but a list of predictions with their inputs: a job whose answer was lost is found by
its prompt and seed, which is the router's own for each job.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx
from replicate.client import Client
from replicate.prediction import Prediction

from ..backend import Clip, State
from ..errors import Unreadable
from ..policy import BackendTable, Price
from ..request import VideoRequest
from .service import FRESH, Service, reading, submitting, tls

_TOLERANCE_S = 120.0  # by which the clocks may differ
_PAGES = 20
_REQUESTS_FAULT = ("nsfw", "flagged", "sensitive", "safety", "invalid")


class Replicate(Service):
    lost_by_default = "find"

    def __init__(self, name: str, table: BackendTable, prices: Sequence[Price], key: str | None) -> None:
        super().__init__(name, table, prices, key)
        self._transports = [httpx.AsyncHTTPTransport(verify=tls()) for _ in range(2)]
        options: Any = {"base_url": table.base_url, "timeout": httpx.Timeout(30.0)}
        self._client = Client(self.key, **options, transport=self._transports[0])
        self._submissions = Client(self.key, **options, transport=self._transports[1], headers=dict(FRESH))

    async def submit(self, request: VideoRequest, _key: str, /) -> str:
        own = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "image": request.reference_image_url,
            "last_image": request.last_image_url,
            "frames_per_second": request.fps,
            "seed": request.seed,
        }
        name, _, version = self.model.partition(":")
        fields = self.fields(request, own)
        with submitting():
            if version:
                made = await self._submissions.predictions.async_create(version=version, input=fields)
            else:
                made = await self._submissions.predictions.async_create(model=name, input=fields)
        return made.id

    async def find(self, request: VideoRequest, since: float) -> str | None:
        cursor: Any = ...
        for _ in range(_PAGES):
            with reading():
                page = await self._client.predictions.async_list(cursor)
            for each in page.results:
                if _created_at(each) < since - _TOLERANCE_S:
                    return None
                given = each.input or {}
                if given.get("seed") == request.seed and given.get("prompt") == request.prompt:
                    return each.id
            if page.next is None:
                return None
            cursor = page.next
        raise Unreadable("the list of predictions is too long")

    async def status(self, handle: str) -> State:
        with reading():
            return _state_of(await self._client.predictions.async_get(handle))

    async def cancel(self, handle: str) -> State:
        with reading():
            return _state_of(await self._client.predictions.async_cancel(handle))

    async def result(self, handle: str) -> Clip:
        with reading():
            made = await self._client.predictions.async_get(handle)
        output = made.output[0] if isinstance(made.output, list) and made.output else made.output
        if isinstance(output, dict):
            output = output.get("video")
        if not isinstance(output, str):
            raise Unreadable("the prediction has no video")
        return Clip(output, {"id": made.id, "model": made.model, "metrics": made.metrics})

    async def close(self) -> None:
        for transport in self._transports:  # the clients have no end of their own
            await transport.aclose()


def _created_at(prediction: Prediction) -> float:
    """Seconds of the epoch; one without a time counts as new."""
    if prediction.created_at is None:
        return float("inf")
    return datetime.fromisoformat(prediction.created_at).timestamp()


def _state_of(prediction: Prediction) -> State:
    status = prediction.status
    if status == "succeeded":
        return State("completed")
    if status == "failed":
        error = str(prediction.error or "the prediction failed")[:300]
        return State("failed", error=error, retryable=not any(word in error.lower() for word in _REQUESTS_FAULT))
    if str(status) in ("canceled", "aborted"):  # aborted: before it ran, which is not billed
        return State("cancelled", cost_usd=0.0 if str(status) == "aborted" else None)
    return State("queued" if status == "starting" else "running")
