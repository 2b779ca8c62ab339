"""The way of one job: decide, submit, follow, check, settle; and again, until it has ended.

It begins wherever the store says that the job is: a process that takes over a job of another one goes on like its own.
A second backend is asked only where the first attempt is known to have ended without a video.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from . import metrics
from .backend import Backend, Clip, State
from .driver import Driver
from .errors import BackendError, Gone, Refused
from .jobs import Attempt, AttemptState, End, Job
from .leases import LeaseLost

LOG = logging.getLogger("videogen_client.router")
_READS_UNTIL_A_TURN = 4
_T = TypeVar("_T")


class Drive:
    def __init__(self, driver: Driver, job: Job) -> None:
        self._driver = driver
        self._timing = driver.timing
        self.job = job
        self.cancel_requested = job.cancel_requested
        self.look = asyncio.Event()  # something may have happened: look now
        self._route = list(job.route)
        self._held_until = 0.0  # of the driver's clock: nobody else takes the job before

    async def run(self) -> None:
        """Until the job has ended, or belongs to another process."""
        try:
            self.job = await self._stored(self._driver.store.get, self.job.id)
            while self.job.status == "open":
                attempt = self.job.current
                is_new = attempt is None
                if attempt is None:
                    attempt = await self.begin()
                if attempt is not None:
                    await self._carry_out(attempt, is_new=is_new)
                self.job = await self._stored(self._driver.store.get, self.job.id)
            metrics.JOBS.labels(self.job.request.tier, self.job.status).inc()
        except LeaseLost:
            LOG.warning("job %s belongs to another process now", self.job.id)

    async def begin(self) -> Attempt | None:
        """An attempt at the first candidate that may be asked: waits for one until the deadline. None: it ended."""
        while True:
            if self.cancel_requested:
                await self._write(End("cancelled"))
                return None
            attempt, is_passing = await self._decide()
            if attempt is not None:
                return attempt
            if not is_passing or self._driver.clock() >= self.job.deadline_at:
                message = "no backend made the video: route says why"
                await self._write(End("failed", error=_error("no_candidate", message, retryable=is_passing)))
                return None
            await self._pause(self._timing.pause_s)

    async def _decide(self) -> tuple[Attempt | None, bool]:
        """The attempt, and whether there may be one later."""
        job, before = self.job, self._driver.clock()
        decision = await self._stored(self._driver.decide, job)
        attempt = decision.attempt
        if attempt is not None:
            self._held_until = before + self._timing.lease_s
        if attempt is None and decision.is_passing:
            return None, True
        number, chosen = len(job.attempts) + 1, None if attempt is None else attempt.backend
        for each in decision.choices:
            entry = each.entry(chosen=each.backend == chosen, why=decision.why_not.get(each.backend))
            self._route.append({"attempt": number, **entry})
            metrics.DECISIONS.labels(each.backend, str(entry["chosen"]).lower()).inc()
        took_ms = 1000 * decision.took_s
        LOG.info("job %s, attempt %d: %s, decided in %.1f ms", job.id, number, chosen or "no backend", took_ms)
        return attempt, False

    async def _carry_out(self, attempt: Attempt, *, is_new: bool) -> None:
        backend = self._driver.backends.get(attempt.backend)
        if backend is None:
            await self._end_unknown(attempt, "its backend is no longer in the policy")
            return
        handle = attempt.handle
        if handle is None:
            handle = await self._submit(attempt, backend, is_lost=not is_new)
        if handle is not None:
            await self._follow(attempt, backend, handle)

    async def _submit(self, attempt: Attempt, backend: Backend, *, is_lost: bool) -> str | None:
        """The handle; None where the attempt has ended. `is_lost`: it may have been submitted before."""
        absent_since: float | None = None
        while True:
            is_last = is_lost and self._is_late
            try:
                if not is_lost or backend.on_lost == "resubmit":
                    await self._hold(attempt)
                    handle = await asyncio.wait_for(backend.submit(self.job.request, attempt.id), self._timing.submit_s)
                    await self._stored(
                        self._driver.store.submitted, self.job.id, self._driver.owner, attempt.id, handle
                    )
                    return handle
                found = await self._lost_handle(attempt, backend)
                absent_since = self._driver.clock() if absent_since is None else absent_since
            except Refused as failure:
                if not is_lost:  # refusing a repetition says nothing of the first one
                    await self._refused(attempt, failure)
                    return None
                found = None
            except (BackendError, TimeoutError) as failure:
                LOG.warning("job %s: %s may have taken it: %s", self.job.id, backend.name, failure or "no answer")
                found, is_lost = None, True
            if found is not None:
                return found
            now = self._driver.clock()
            if backend.on_lost == "find" and absent_since is not None and now - absent_since >= self._timing.find_s:
                await self._refused(attempt, Refused("the answer was lost, and the service does not list the job"))
                return None
            if is_last:
                await self._end_unknown(attempt, "the answer of the service was lost")
                return None
            await self._pause(self._timing.retry_s)

    async def _hold(self, attempt: Attempt) -> None:
        """Until the lease outlasts a submission: nobody else takes the job meanwhile. Raises LeaseLost."""
        while self._held_until - (before := self._driver.clock()) < self._timing.submit_s:
            lease_s = self._timing.lease_s
            await self._stored(self._driver.store.hold, self.job.id, self._driver.owner, attempt.id, lease_s)
            self._held_until = before + lease_s

    async def _lost_handle(self, attempt: Attempt, backend: Backend) -> str | None:
        if backend.on_lost == "find":
            since = attempt.begun_at
            handle = await self._look(backend, backend.find, self.job.request, since)
            if handle is not None:
                await self._stored(self._driver.store.submitted, self.job.id, self._driver.owner, attempt.id, handle)
            return handle
        current = (await self._stored(self._driver.store.get, self.job.id)).current
        return None if current is None else current.handle  # a webhook may have brought it

    async def _refused(self, attempt: Attempt, failure: Refused) -> None:
        if failure.retryable:
            await self._settle(attempt, "refused", 0.0, is_success=False, why=str(failure))
        else:
            end = End("failed", error=_error("invalid_request", str(failure), retryable=False))
            await self._settle(attempt, "refused", 0.0, is_success=None, why=str(failure), end=end)

    async def _follow(self, attempt: Attempt, backend: Backend, handle: str) -> None:
        table = self._driver.policy.backends[attempt.backend]
        leave_at = self.job.deadline_at
        if table.patience_s is not None:
            leave_at = min(leave_at, attempt.begun_at + table.patience_s)
        while True:
            is_last = self._is_late
            try:
                state: State | None = await self._look(backend, backend.status, handle)
            except Gone:
                state = None
                if backend.on_lost == "resubmit":  # what is made is not made twice
                    again = await self._submit(attempt, backend, is_lost=True)
                    if again is None:
                        return
                    handle = again
            except (BackendError, TimeoutError):
                state = None
            now = self._driver.clock()
            if (state is None or not state.has_ended) and (self.cancel_requested or now >= leave_at):
                state = await self._cancel(backend, handle)
                leave_at = now + 10 * table.poll_s
            if state is not None and state.has_ended and await self._ended(attempt, backend, handle, state):
                return
            if is_last:
                await self._end_unknown(attempt, "it had not ended at the deadline, and no cancel was confirmed")
                return
            pause_s = self._driver.between_looks_s(table.poll_s)
            await self._pause(min(pause_s, max(0.0, self.job.deadline_at - now)))

    async def _cancel(self, backend: Backend, handle: str) -> State | None:
        try:
            return await self._look(backend, backend.cancel, handle)
        except (BackendError, TimeoutError):
            return None

    async def _ended(self, attempt: Attempt, backend: Backend, handle: str, state: State) -> bool:
        """False where its video cannot be fetched yet."""
        if state.status == "completed":
            return await self._deliver(attempt, backend, handle, state)
        why = state.error or "it was cancelled"
        cost_usd = state.cost_usd
        if cost_usd is None:
            bills = self._driver.policy.backends[attempt.backend].bills_failures
            cost_usd = attempt.reserved_usd if bills else 0.0
        end: End | None = None
        is_success: bool | None = False
        if state.status == "cancelled" and self.cancel_requested:
            end, is_success = End("cancelled"), None
        elif state.status == "failed" and not state.retryable:
            end, is_success = End("failed", error=_error("refused_by_model", why, retryable=False)), None
        elif self._driver.clock() >= self.job.deadline_at:
            end = End("failed", error=_error("timeout", f"the deadline passed: {why}", retryable=True))
        ended: AttemptState = "cancelled" if state.status == "cancelled" else "failed"
        await self._settle(attempt, ended, cost_usd, is_success=is_success, why=why, end=end)
        return True

    async def _deliver(self, attempt: Attempt, backend: Backend, handle: str, state: State) -> bool:
        cost_usd = attempt.reserved_usd if state.cost_usd is None else state.cost_usd
        try:
            clip = await self._look(backend, backend.result, handle)
            why_not = await self._driver.gate(backend, clip, self.job)
        except (BackendError, TimeoutError):
            return False
        if why_not is not None:
            await self._settle(attempt, "failed", cost_usd, is_success=False, why=f"the clip is not good: {why_not}")
            return True
        end = End("completed", result=delivered(attempt, handle, clip))
        await self._settle(attempt, "completed", cost_usd, is_success=True, end=end)
        return True

    async def _end_unknown(self, attempt: Attempt, why: str) -> None:
        """It may have been made, so that it counts with its highest price."""
        end = End("unknown", error=_error("unknown", why, retryable=False))
        await self._settle(attempt, "unknown", attempt.reserved_usd, is_success=False, why=why, end=end)

    async def _settle(
        self,
        attempt: Attempt,
        state: AttemptState,
        cost_usd: float,
        *,
        is_success: bool | None,
        why: str | None = None,
        end: End | None = None,
    ) -> None:
        for entry in self._route:
            if entry["attempt"] == attempt.number and entry["chosen"]:
                entry["outcome"] = state if why is None else f"{state}: {why}"
        if cost_usd > attempt.reserved_usd + 1e-6:
            LOG.warning("%s cost %.4f USD, more than its price of the policy", attempt.id, cost_usd)
        await self._stored(
            self._driver.store.settle,
            self.job,
            self._driver.owner,
            attempt,
            state,
            cost_usd=cost_usd,
            is_success=is_success,
            why=why,
            route=self._route,
            end=end,
        )
        metrics.ATTEMPTS.labels(attempt.backend, state).inc()
        metrics.COST.labels(attempt.backend).inc(cost_usd)
        LOG.info("job %s, attempt %d at %s: %s", self.job.id, attempt.number, attempt.backend, state)

    async def _write(self, end: End) -> None:
        await self._stored(self._driver.store.write, self.job, self._driver.owner, self._route, end)

    async def _stored(self, function: Callable[..., _T], *arguments: Any, **options: Any) -> _T:
        stored: _T = await self._driver.in_thread(function, *arguments, **options)
        return stored

    @property
    def _is_late(self) -> bool:
        """One more look, which begins now, and what is not known after that remains unknown."""
        return self._driver.clock() >= self.job.deadline_at

    async def _look(self, backend: Backend, call: Callable[..., Awaitable[_T]], *arguments: Any) -> _T:
        """What a backend returns. Waiting for a turn is not its time, and ends where all of its looks hang."""
        turns, read_s = self._driver.turns[backend.name], self._timing.read_s
        async with asyncio.timeout(_READS_UNTIL_A_TURN * read_s):
            await turns.acquire()
        try:
            return await asyncio.wait_for(call(*arguments), read_s)
        finally:
            turns.release()

    async def _pause(self, seconds: float) -> None:
        """Ends at once where there is something to look at."""
        try:
            await asyncio.wait_for(self.look.wait(), seconds)
        except TimeoutError:
            return
        self.look.clear()


def delivered(attempt: Attempt, handle: str, clip: Clip) -> dict[str, Any]:
    """The result of a job."""
    return {"backend": attempt.backend, "video_url": clip.url, "details": dict(clip.details), "handle": handle}


def _error(code: str, message: str, *, retryable: bool) -> dict[str, Any]:
    return {"code": code, "message": message, "retryable": retryable}
