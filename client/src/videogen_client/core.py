"""What is asked of an endpoint, and what its answers mean: no network, no sleeping.

Each call is a generator of steps (`Send`, `Pause`, `Fetch`, `Progress`). A shell carries them out and sends back what
came of them: `Client` blocks, `AsyncClient` awaits.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote

from .errors import (
    CancelRefused,
    EndpointRefused,
    EndpointUnavailable,
    Job,
    JobNotFound,
    JobRefused,
    Timeout,
    UnexpectedAnswer,
    VideoGenError,
)
from .state import JobState, Progress, delivered, failure_of, state_of

RUNPOD_URL = os.environ.get("RUNPOD_ENDPOINT_BASE_URL", "https://api.runpod.ai/v2")  # the variable of RunPod's SDK
RUN_LIMIT_BYTES = 10_000_000  # RunPod refuses a larger request to /run
_NOT_FOUND = (404, 410)


@dataclass(frozen=True)
class Timing:
    """Seconds, all of them. A request that fails is tried again for `retry_s`, at most `attempts` times in all."""

    poll_s: float = 2.0
    request_s: float = 30.0
    retry_s: float = 60.0
    attempts: int = 8
    first_wait_s: float = 0.5
    longest_wait_s: float = 15.0
    stall_s: float = 30.0


@dataclass(frozen=True)
class Send:
    """A request of `wait_s` seconds at most, tried again on 429, 5xx and broken connections for `within_s` in all.

    The shell sends back a `Reply`.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    wait_s: float
    within_s: float


@dataclass(frozen=True)
class Reply:
    """`status` is 0 where no answer came; `content` is None where it is no JSON object. `was_sent`: the request."""

    status: int
    content: Mapping[str, Any] | None = None
    was_sent: bool = True


@dataclass(frozen=True)
class Pause:
    seconds: float


_T = TypeVar("_T")
Steps = Generator[Any, Any, _T]


@dataclass(frozen=True)
class Core:
    """`url` is the endpoint's, without a slash at its end. A local worker has no queue: asking for the state of a job
    runs it, and answers when it is done.
    """

    url: str
    api_key: str | None
    is_local: bool
    timing: Timing
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def of(cls, endpoint_id: str | None, api_key: str | None, base_url: str | None, timing: Timing) -> Core:
        """Raises ValueError where neither an endpoint with its key nor a URL is given."""
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ValueError("base_url begins with http:// or https://")
        if endpoint_id is None:
            if base_url is None:
                raise ValueError("give endpoint_id and api_key, or the base_url of a local worker")
            return cls(base_url.rstrip("/"), api_key, True, timing)
        if not api_key:
            raise ValueError("api_key is missing: make one in RunPod's console, under Settings")
        return cls(f"{(base_url or RUNPOD_URL).rstrip('/')}/{quote(endpoint_id, safe='')}", api_key, False, timing)

    def generate(self, payload: Mapping[str, Any], timeout_s: float) -> Steps[Mapping[str, Any]]:
        deadline = self.clock() + timeout_s
        job = yield from self.submit(payload, timeout_s)
        return (yield from self.follow(job, deadline - self.clock()))

    def submit(self, payload: Mapping[str, Any], timeout_s: float) -> Steps[Job]:
        """A payload without `job_id` gets one. A request whose answer was lost is sent again under the same: the worker
        knows it by that, and makes each video once.
        """
        payload = {**payload, "job_id": payload.get("job_id") or uuid.uuid4().hex}
        job_id = str(payload["job_id"])
        body = json.dumps({"input": payload}, ensure_ascii=False).encode()
        if not self.is_local and len(body) > RUN_LIMIT_BYTES:
            message = f"the request has {len(body) / 1e6:.1f} MB, RunPod takes 10 MB: put images behind a URL"
            raise JobRefused("invalid_request", message)
        reply: Reply = yield self._send("POST", "run", timeout_s, body)
        try:
            content = _content_of(reply)
        except VideoGenError as failure:
            failure.job_id = job_id
            raise
        if not isinstance(content.get("id"), str):
            raise UnexpectedAnswer("the endpoint answered without the id of a job", job_id=job_id)
        return Job(content["id"], job_id, payload)

    def status(self, job: Job, timeout_s: float) -> Steps[JobState]:
        send = self._send("POST" if self.is_local else "GET", f"status/{_quoted(job)}", timeout_s)
        reply: Reply = yield replace(send, wait_s=timeout_s, within_s=timeout_s) if self.is_local else send
        if reply.status in _NOT_FOUND:
            raise _not_found(job)
        content = _content_of(reply)
        if self.is_local and content.get("error") == "Job ID not found":
            raise _not_found(job)
        return state_of(content, job)

    def follow(self, job: Job, timeout_s: float) -> Steps[Mapping[str, Any]]:
        """The answer of the job. On the way a `Progress` each time that another one was reported."""
        deadline = self.clock() + timeout_s
        shown: Progress | None = None
        sent_again = False
        while (left_s := deadline - self.clock()) > 0:
            try:
                state = yield from self.status(job, left_s)
            except JobNotFound:
                if job.payload is None or sent_again:
                    raise
                sent_again = True  # what the worker has made is in its journal, under the same job_id
                job = yield from self.submit(job.payload, left_s)
                continue
            except VideoGenError as failure:
                if isinstance(failure, EndpointUnavailable) and self.clock() >= deadline:
                    break
                failure.job, failure.job_id = job, job.job_id
                raise
            if state.progress is not None and state.progress != shown:
                shown = state.progress
                yield shown
            if state.has_ended:
                return delivered(state, job)
            yield Pause(max(0.0, min(self.timing.poll_s, deadline - self.clock())))
        raise Timeout(f"not done within {timeout_s:g} s; the job goes on: result() waits for it again", job=job)

    def stream(self, job: Job, timeout_s: float) -> Steps[None]:
        answer = yield from self.follow(job, timeout_s)
        yield Progress(100, "completed", answer=answer)  # type: ignore[arg-type]

    def cancel(self, job: Job, timeout_s: float) -> Steps[JobState]:
        """The state of the job afterwards: where it had ended before, that one. Raises CancelRefused."""
        if self.is_local:
            raise CancelRefused("a local worker runs a job to its end: stop its process instead", job=job)
        reply: Reply = yield self._send("POST", f"cancel/{_quoted(job)}", timeout_s)
        if reply.status // 100 == 2 and reply.content is not None and reply.content.get("status") == "CANCELLED":
            return state_of(reply.content, job)
        if reply.status in (0, 401, 403, 429) or reply.status >= 500:
            _content_of(reply)
        state = yield from self.status(job, timeout_s)
        if not state.has_ended:
            raise CancelRefused(f"the endpoint does not cancel the job ({reply.status}), which runs on", job=job)
        return state

    def _send(self, method: str, path: str, timeout_s: float, body: bytes | None = None) -> Send:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        wait_s, within_s = min(timeout_s, self.timing.request_s), min(timeout_s, self.timing.retry_s)
        return Send(method, f"{self.url}/{path}", headers, body, wait_s, within_s)


def job_of(job: Job | str) -> Job:
    return Job(job) if isinstance(job, str) else job


def _quoted(job: Job) -> str:
    return quote(job.id, safe="")


def _not_found(job: Job) -> JobNotFound:
    message = (
        "the endpoint does not know the job, whose result is kept for 30 minutes: send it again under the same job_id, "
        "what is made is not made twice"
    )
    return JobNotFound(message, job=job)


def _content_of(reply: Reply) -> Mapping[str, Any]:
    status = reply.status
    if status == 0:
        message = "no answer from the endpoint: check the network, then try again"
        raise EndpointUnavailable(message, may_be_taken=reply.was_sent)
    if status == 429 or status >= 500:
        message = f"the endpoint answered {status}: try again in a minute"
        raise EndpointUnavailable(message, may_be_taken=status not in (429, 503))
    if status in (400, 413, 422):
        said = str((reply.content or {}).get("error") or "")[:500]
        refused = failure_of(said, "invalid_request", f"the endpoint does not accept the request ({status})")
        raise JobRefused(refused.code, refused.message, path=refused.path, problems=refused.problems)
    if status // 100 != 2:
        key = "the API key (RUNPOD_API_KEY), which must be one of the endpoint's account"
        hint = key if status in (401, 403) else "the endpoint's id" if status == 404 else "base_url"
        raise EndpointRefused(f"the endpoint answered {status}: check {hint}")
    if reply.content is None:
        raise UnexpectedAnswer("the endpoint answered something that is no JSON object")
    return reply.content
