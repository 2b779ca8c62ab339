"""The router: takes requests, drives their jobs, and finds those that another process has left."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from ..errors import Timeout
from . import metrics
from .backend import Backend, Clip
from .backends import make_backends
from .breaker import BreakerState
from .decide import Choice, weigh
from .drive import Drive, delivered
from .driver import Driver, RouterTiming
from .errors import NoCandidate
from .jobs import Job
from .policy import Policy
from .quality import QualityGate, Scorer
from .request import VideoRequest
from .store import Store

LOG = logging.getLogger("videogen_client.router")
_CLAIMED_AT_ONCE = 50
_THREADS = 4  # for Postgres; SQLite has one writer
_T = TypeVar("_T")


class Router:
    """Use it as `async with Router(policy) as router`. Leaving the block leaves open jobs to the next process.

    `backends` replaces those of the policy, by their names; `scorer` says how good a clip is, 0 to 1. `clock` gives
    seconds of the epoch: processes that share a store need clocks that agree within a few seconds.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        backends: Mapping[str, Backend] | None = None,
        scorer: Scorer | None = None,
        timing: RouterTiming | None = None,
        clock: Callable[[], float] = time.time,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._policy = policy
        self._timing = RouterTiming() if timing is None else timing
        self._clock = clock
        self._backends = make_backends(policy, environ) if backends is None else dict(backends)
        self._gate = QualityGate(policy.quality, scorer)
        self._owner = uuid.uuid4().hex
        self._drives: dict[str, tuple[Drive, asyncio.Task[None]]] = {}

    async def __aenter__(self) -> Self:
        self._store = Store(self._policy, self._clock)
        self._threads = ThreadPoolExecutor(1 if self._store.is_sqlite else _THREADS, "router-store")
        self._driver = Driver(
            self._policy,
            self._backends,
            self._store,
            self._in_thread,
            self._gate,
            self._timing,
            self._clock,
            self._owner,
        )
        await self._keep()
        self._keeper = asyncio.create_task(self._keep_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [self._keeper, *(task for _, task in self._drives.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._in_thread(self._store.release, self._owner)
        for backend in self._backends.values():
            await backend.close()
        self._threads.shutdown()
        self._store.close()

    @property
    def in_flight(self) -> int:
        """Jobs that this process drives."""
        return len(self._drives)

    @property
    def workers(self) -> list[str]:
        """The names of the backends that are this worker."""
        return [name for name, table in self._policy.backends.items() if table.kind == "runpod"]

    async def submit(self, request: VideoRequest | Mapping[str, Any], *, key: str | None = None) -> str:
        """The id of the job. The same key with the same request is the same job, whatever happened to it.

        Raises RequestRefused, KeyReused, and NoCandidate where no backend may ever make the video.
        """
        if not isinstance(request, VideoRequest):
            request = VideoRequest.read(request)
        key = uuid.uuid4().hex if key is None else key
        if request.seed is None:  # every attempt has the same one, so that a service's list shows which job is whose
            digest = hashlib.sha256(f"{request.tenant}/{key}".encode()).digest()
            request = request.model_copy(update={"seed": int.from_bytes(digest[:4], "big") >> 1})
        new_id = uuid.uuid4().hex
        job: Job = await self._in_thread(self._create, new_id, key, request)
        if job.id == new_id:
            self._start(job)
        return job.id

    async def plan(self, request: VideoRequest | Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the router would do now: `backend`, `chosen`, `why` of each candidate. Nothing is submitted."""
        if not isinstance(request, VideoRequest):
            request = VideoRequest.read(request)
        route = self._weigh(request, *await self._in_thread(self._store.standing, request.tenant))
        first = next((each for each in route if each.why_not is None), None)
        return [each.entry(chosen=each is first) for each in route]

    async def job(self, job_id: str) -> Job:
        """Raises JobUnknown."""
        found: Job = await self._in_thread(self._store.get, job_id)
        return found

    async def result(self, job_id: str, *, timeout_s: float = 3600.0) -> Job:
        """The job after its end. Raises JobUnknown, and Timeout where it goes on."""
        deadline = time.monotonic() + timeout_s
        while (job := await self.job(job_id)).status == "open":
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Timeout(f"not done within {timeout_s:g} s; the job goes on", job_id=job_id)
            _, task = self._drives.get(job_id, (None, None))
            if task is None:  # another process drives it
                await asyncio.sleep(min(left_s, self._timing.pause_s))
            else:
                await asyncio.wait([task], timeout=left_s)
        return job

    async def look_again(self, job_id: str) -> Job:
        """The job; one that ended as unknown has its video from now on, where its service has made it since.

        Raises JobUnknown and BackendError.
        """
        job = await self.job(job_id)
        attempt = job.attempts[-1] if job.attempts else None
        if job.status != "unknown" or attempt is None or attempt.handle is None:
            return job
        backend = self._backends[attempt.backend]
        if (await backend.status(attempt.handle)).status == "completed":
            result = delivered(attempt, attempt.handle, await backend.result(attempt.handle))
            await self._in_thread(self._store.adopt, job_id, result)
        return await self.job(job_id)

    async def cancel(self, job_id: str) -> None:
        """Asks for the end of a job: it ends as cancelled once its service has confirmed that. Raises JobUnknown."""
        await self._in_thread(self._store.get, job_id)
        await self._in_thread(self._store.request_cancel, job_id)
        if job_id in self._drives:
            drive, _ = self._drives[job_id]
            drive.cancel_requested = True
            drive.look.set()

    async def notice(self, attempt_id: str, handle: str) -> None:
        """A webhook of a service, for an attempt. It is only a hint to look: a second one changes nothing."""
        await self._in_thread(self._store.found, attempt_id, handle)
        drive, _ = self._drives.get(attempt_id.rpartition("-")[0], (None, None))
        if drive is not None:
            drive.look.set()

    async def download(self, job_id: str, path: Path) -> None:
        """Writes the video of a completed job. Raises BackendError."""
        result = (await self.job(job_id)).result
        if result is None:
            raise ValueError("the job has no video")
        await self._backends[result["backend"]].download(Clip(result["video_url"], result["details"]), path)

    def _create(self, job_id: str, key: str, request: VideoRequest) -> Job:
        """Blocks: it belongs into a thread."""

        def admit(breakers: Mapping[str, BreakerState], left_usd: float | None) -> None:
            route = self._weigh(request, breakers, left_usd)
            if not any(each.why_not is None or each.is_passing for each in route):
                raise NoCandidate([each.entry(chosen=False) for each in route])

        deadline_at = self._deadline_at(request)
        return self._store.create(job_id, key, request, deadline_at, self._owner, self._timing.lease_s, admit)

    def _weigh(
        self, request: VideoRequest, breakers: Mapping[str, BreakerState], left_usd: float | None
    ) -> list[Choice]:
        """The candidates, with what is left of the tenant's budget."""
        now, deadline_at = self._clock(), self._deadline_at(request)
        choices = weigh(self._policy, self._backends, request, breakers=breakers, now=now, deadline_at=deadline_at)
        return [each if left_usd is None else each.within(left_usd) for each in choices]

    def _deadline_at(self, request: VideoRequest) -> float:
        """Raises NoCandidate."""
        tier = self._policy.tiers.get(request.tier)
        if tier is None:
            raise NoCandidate([{"backend": "none", "chosen": False, "why": f"the policy has no tier {request.tier}"}])
        return self._clock() + (tier.deadline_s if request.deadline_s is None else request.deadline_s)

    def _start(self, job: Job) -> None:
        drive = Drive(self._driver, job)
        self._drives[job.id] = drive, asyncio.create_task(self._drive(drive))
        self._driver.in_flight = len(self._drives)
        metrics.IN_FLIGHT.inc()

    async def _drive(self, drive: Drive) -> None:
        job_id = drive.job.id
        try:
            while True:
                try:
                    await drive.run()
                    return
                except Exception:  # a fault of ours, or of the store: the job goes on where the store has it
                    LOG.exception("job %s: is driven again", job_id)
                    await asyncio.sleep(self._timing.retry_s)
        finally:
            self._drives.pop(job_id, None)
            self._driver.in_flight = len(self._drives)
            metrics.IN_FLIGHT.dec()

    async def _keep_on(self) -> None:
        while True:
            await asyncio.sleep(self._timing.lease_s / 4)
            try:
                await self._keep()
            except Exception:
                LOG.exception("the leases were not renewed")

    async def _keep(self) -> None:
        """Renews the leases of this process, and takes jobs that no process has."""
        driven = list(self._drives)
        for job_id in await self._in_thread(self._store.renew, self._owner, driven, self._timing.lease_s):
            if job_id in self._drives:
                drive, _ = self._drives[job_id]
                drive.cancel_requested = True
                drive.look.set()
        for job_id in await self._in_thread(self._store.claim, self._owner, self._timing.lease_s, _CLAIMED_AT_ONCE):
            LOG.info("job %s: taken over", job_id)
            if job_id in self._drives:  # its lease ran out: what that drive knows may be out of date
                _, task = self._drives[job_id]
                task.cancel()
                await asyncio.wait([task])
            self._start(await self.job(job_id))

    async def _in_thread(self, function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        call = functools.partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)
