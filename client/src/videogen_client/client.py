"""The client that blocks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
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


class Client:
    """Of an endpoint of RunPod (`endpoint_id`, and `api_key` or `RUNPOD_API_KEY`), or of a worker under `handler.py
    --rp_serve_api` (`base_url`). Calls may come from several threads. `timeout_s` bounds a whole call.

    A failing request is tried again on 429, 5xx and broken connections. Every call raises VideoGenError and no other.
    """

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
        self._http = httpx.Client()

    def generate(self, payload: Input, *, timeout_s: float = 3600.0) -> Answer:
        """Sends the payload, waits, and returns the answer; that of a training is a `Training`.

        Raises VideoFailed where no video was made.
        """
        return cast(Answer, self._run(self._core.generate(payload, timeout_s)))

    def train(self, settings: TrainInput, *, job_id: str | None = None, timeout_s: float = 86_400.0) -> Training:
        """Trains a LoRA, waits, and returns what came of it: `loras` goes into the requests of videos as it is.

        Raises VideoFailed where nothing was trained.
        """
        payload: TrainingInput = {"train": settings, "job_id": job_id}
        return cast(Training, self._run(self._core.generate(payload, timeout_s)))

    def submit(self, payload: Input, *, timeout_s: float = 120.0) -> Job:
        return self._run(self._core.submit(payload, timeout_s))

    def status(self, job: Job | str, *, timeout_s: float = 120.0) -> JobState:
        """On a local worker this runs the job, so give it the time that the job takes."""
        return self._run(self._core.status(job_of(job), timeout_s))

    def result(self, job: Job | str, *, timeout_s: float = 3600.0) -> Answer:
        """Waits for the job. Raises VideoFailed where it has no video, and Timeout: then the job goes on."""
        return cast(Answer, self._run(self._core.follow(job_of(job), timeout_s)))

    def stream(self, job: Job | str, *, timeout_s: float = 3600.0) -> Iterator[Progress]:
        """Waits as `result` does; yields each progress that is reported. The last one has the answer."""
        steps, reply = self._core.stream(job_of(job), timeout_s), None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration:
                return
            if isinstance(step, Progress):
                yield step
            reply = self._carry_out(step)

    def cancel(self, job: Job | str, *, timeout_s: float = 120.0) -> JobState:
        """Returns the state afterwards: a job that had ended before keeps its answer. Raises CancelRefused."""
        return self._run(self._core.cancel(job_of(job), timeout_s))

    def download(
        self,
        video: VideoResult | VideoFailure,
        path: str | Path,
        *,
        file: File = "video",
        timeout_s: float = 1800.0,
        overwrite: bool = True,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Path:
        """Writes a file of a video of an answer to `path`, whole or not at all; size and hash are those of the answer.

        A file that is there with the right hash is not fetched again. `on_bytes` gets the bytes fetched so far. Raises
        VideoFailed for a video that was not made, DownloadFailed, DownloadCorrupt, FileExistsError without `overwrite`
        where another file is there, and OSError where the file cannot be written.
        """
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
        return self._run(steps)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, steps: Steps[_T]) -> _T:
        reply = None
        while True:
            try:
                step = steps.send(reply)
            except StopIteration as done:
                return cast(_T, done.value)
            reply = self._carry_out(step)

    def _carry_out(self, step: object) -> Reply | Fetched | None:
        if isinstance(step, Send):
            return self._send(step)
        if isinstance(step, Fetch):
            return self._fetch(step)
        if isinstance(step, Pause):
            time.sleep(step.seconds)
        return None

    def _send(self, step: Send) -> Reply:
        budget = transport.Budget(step, self._core.timing)
        try:
            for attempt in stamina.retry_context(**budget.of_stamina):
                with attempt:
                    return self._attempt(step, budget.wait_s())
        except transport.Passing as last:
            return last.reply
        raise AssertionError("stamina returns or raises")

    def _attempt(self, step: Send, wait_s: float) -> Reply:
        limits, body = transport.timeouts(self._core.timing, wait_s), transport.Body(wait_s)
        try:
            with self._http.stream(**transport.request_of(step), timeout=limits) as response:
                for piece in response.iter_bytes():
                    body.add(piece)
                return body.reply(response)
        except (httpx.HTTPError, httpx.InvalidURL) as failure:
            raise transport.unanswered(failure) from failure

    def _fetch(self, step: Fetch) -> Fetched:
        limits = transport.stall(self._core.timing, step)
        try:
            with self._http.stream(
                "GET", step.url, headers=transport.range_of(step), timeout=limits, follow_redirects=True
            ) as response:
                if response.status_code not in (200, 206):
                    return Fetched(response.status_code, is_whole=False)
                with transport.Sink(step, response) as sink:
                    try:
                        is_whole = all(sink.add(piece) for piece in response.iter_raw())
                    except httpx.HTTPError:
                        is_whole = False
                    return sink.fetched(response, is_whole=is_whole)
        except (httpx.HTTPError, httpx.InvalidURL):
            return Fetched(0, is_whole=False)
