"""The client of asyncio: the calls of `Client`, awaited."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, cast

import httpx
import stamina

from . import transport
from .core import Core, Pause, Reply, Send, Steps, Timing, job_of
from .downloads import Fetch, Fetched, File, download
from .errors import Job
from .state import JobState, Progress
from .types import Answer, Input, Training, TrainingInput, TrainInput, VideoFailure, VideoResult
from .webhooks import verify_webhook

_T = TypeVar("_T")


class AsyncClient:
    """`Client` for asyncio: the same calls, arguments and errors. Files are written and checked in the event loop."""

    verify_webhook = staticmethod(verify_webhook)

    def __init__(
        self,
        endpoint_id: str | None = None,
        api_key: str | None = None,
        *,
        base_url: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        timing = Timing() if timing is None else timing
        self._core = Core.of(endpoint_id, api_key or os.environ.get("RUNPOD_API_KEY"), base_url, timing)
        self._http = httpx.AsyncClient()

    async def generate(self, payload: Input, *, timeout_s: float = 3600.0) -> Answer:
        return cast(Answer, await self._run(self._core.generate(payload, timeout_s)))

    async def train(self, settings: TrainInput, *, job_id: str | None = None, timeout_s: float = 86_400.0) -> Training:
        payload: TrainingInput = {"train": settings, "job_id": job_id}
        return cast(Training, await self._run(self._core.generate(payload, timeout_s)))

    async def submit(self, payload: Input, *, timeout_s: float = 120.0) -> Job:
        return await self._run(self._core.submit(payload, timeout_s))

    async def status(self, job: Job | str, *, timeout_s: float = 120.0) -> JobState:
        return await self._run(self._core.status(job_of(job), timeout_s))

    async def result(self, job: Job | str, *, timeout_s: float = 3600.0) -> Answer:
        return cast(Answer, await self._run(self._core.follow(job_of(job), timeout_s)))

    async def stream(self, job: Job | str, *, timeout_s: float = 3600.0) -> AsyncIterator[Progress]:
        steps, reply = self._core.stream(job_of(job), timeout_s), None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if isinstance(step, Progress):
                yield step
            reply = await self._carry_out(step)

    async def cancel(self, job: Job | str, *, timeout_s: float = 120.0) -> JobState:
        return await self._run(self._core.cancel(job_of(job), timeout_s))

    async def download(
        self,
        video: VideoResult | VideoFailure,
        path: str | Path,
        *,
        file: File = "video",
        timeout_s: float = 1800.0,
        overwrite: bool = True,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        core = self._core
        steps = download(
            cast(Mapping[str, Any], video),
            Path(path),
            file,
            timeout_s=timeout_s,
            timing=core.timing,
            clock=core.clock,
            is_local=core.is_local,
            overwrite=overwrite,
            on_bytes=on_bytes or (lambda _bytes: None),
        )
        return await self._run(steps)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, steps: Steps[_T]) -> _T:
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                return cast(_T, done.value)
            reply = await self._carry_out(step)

    async def _carry_out(self, step: object) -> Reply | Fetched | None:
        if isinstance(step, Send):
            return await self._send(step)
        if isinstance(step, Fetch):
            return await self._fetch(step)
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        return None

    async def _send(self, step: Send) -> Reply:
        budget = transport.Budget(step, self._core.timing)
        try:
            async for attempt in stamina.retry_context(**budget.of_stamina):
                with attempt:
                    return await self._attempt(step, budget.wait_s())
        except transport.Passing as last:
            return last.reply
        raise AssertionError("stamina returns or raises")

    async def _attempt(self, step: Send, wait_s: float) -> Reply:
        limits, body = transport.timeouts(self._core.timing, wait_s), transport.Body(wait_s)
        try:
            async with self._http.stream(**transport.request_of(step), timeout=limits) as response:
                async for piece in response.aiter_bytes():
                    body.add(piece)
                return body.reply(response)
        except (httpx.HTTPError, httpx.InvalidURL) as failure:
            raise transport.unanswered(failure) from failure

    async def _fetch(self, step: Fetch) -> Fetched:
        limits = transport.stall(self._core.timing, step)
        try:
            async with self._http.stream(
                "GET", step.url, headers=transport.range_of(step), timeout=limits, follow_redirects=True
            ) as response:
                if response.status_code not in (200, 206):
                    return Fetched(response.status_code, is_whole=False)
                with transport.Sink(step, response) as sink:
                    try:
                        is_whole = True
                        async for piece in response.aiter_raw():
                            if not sink.add(piece):
                                is_whole = False
                                break
                    except httpx.HTTPError:
                        is_whole = False
                    return sink.fetched(response, is_whole=is_whole)
        except (httpx.HTTPError, httpx.InvalidURL):
            return Fetched(0, is_whole=False)
