"""The videos of the facade: sent to the backend, followed to their end, fetched, removed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ..errors import Job, JobNotFound, VideoFailed, VideoGenError
from ..state import Progress, delivered
from ..types import Input, Webhook
from .backend import Backend
from .content import Content, Variant
from .dialect import DEFAULT_MODEL, asked, payload_of
from .refusal import Refused, no_such_video, param_of
from .store import Record, Store

logger = logging.getLogger("videogen_client.serve")
SUBMIT_WITHIN_S = 30.0
FOLLOW_WITHIN_S = 24 * 3600.0
_LOOKS_PER_S = 100  # RunPod allows 200 a second for an endpoint
_SHOWN = ("seed", "warnings", "cost_usd")


class Videos:
    """One task follows each video that has not ended. `on_end` gets the status with which one has.

    `poll_s` is the pause between two looks at a job; with many jobs it is longer. `webhook_url` is where the worker
    sends its events, and may be None.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        content: Content,
        *,
        poll_s: float = 2.0,
        webhook_url: str | None = None,
        on_end: Callable[[str], None] = lambda _status: None,
    ) -> None:
        self._backend = backend
        self._store = store
        self._content = content
        self._poll_s = poll_s
        self._webhook_url = webhook_url
        self._on_end = on_end
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}

    def resume(self) -> None:
        """Follow what an earlier process has left."""
        for record in self._store.unfinished():
            self._start(record.id)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._backend.close()
        self._store.close()

    @property
    def followed(self) -> int:
        return len(self._tasks)

    def percent(self, video_id: str) -> int:
        progress = self._progress.get(video_id)
        return 0 if progress is None else progress.percent

    async def create(self, owner: str, fields: Mapping[str, Any], key: str | None) -> Record:
        """Sends the job. The same `key` of the same owner is the same video. Raises Refused and VideoGenError."""
        payload = payload_of(fields)
        video_id = f"video_{uuid.uuid4().hex if key is None else _digest(f'{owner}:{key}')}"
        payload["job_id"] = video_id
        if self._webhook_url is not None:
            payload["webhook_url"] = self._webhook_url
        known = self._store.get(video_id)
        if known is not None:
            if self._store.payload(video_id) != payload:
                raise Refused(409, "Idempotency-Key was used for another request", code="idempotency_error")
            return known
        model = fields.get("model")
        size, seconds = asked(payload)
        record = Record(
            id=video_id,
            owner=owner,
            created_at=int(time.time()),
            model=model if isinstance(model, str) else DEFAULT_MODEL,
            prompt=payload["prompt"],
            size=size,
            seconds=seconds,
        )
        self._store.add(record, payload)
        try:
            await self._send(video_id)
        except VideoGenError:
            self._store.remove(video_id)
            raise
        self._start(video_id)
        return record

    def get(self, owner: str, video_id: str) -> Record:
        """Raises Refused for a video that is not there, or another's."""
        record = self._store.get(video_id)
        if record is None or record.owner != owner:
            raise no_such_video(video_id)
        return record

    def page(self, owner: str, *, after: str | None, limit: int, newest_first: bool) -> tuple[list[Record], bool]:
        """Some records, and whether there are more."""
        if after is not None:
            self.get(owner, after)
        found = self._store.page(owner, after=after, limit=limit + 1, newest_first=newest_first)
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, video_id: str) -> None:
        """A job that runs is stopped first. Raises Refused and VideoGenError: then nothing is removed."""
        record = self.get(owner, video_id)
        if not record.has_ended and record.run_id is not None:
            await self._backend.cancel(Job(record.run_id, record.id), timeout_s=SUBMIT_WITHIN_S)
        self._forget(video_id)
        self._store.remove(video_id)
        self._content.remove(video_id)

    async def file(self, owner: str, video_id: str, variant: Variant) -> Path:
        """Raises Refused where there is no such file, or not yet, and VideoGenError."""
        record = self.get(owner, video_id)
        if record.status != "completed":
            raise Refused(404, f"the video is {record.status}: it has no content", code="not_ready")
        return await self._content.fetched(video_id, self._store.result(video_id), variant)

    def hear(self, event: Webhook) -> None:
        """An event of the worker whose signature was checked. A job has one video: its final event ends it."""
        job_id = event["job_id"] if event["type"] == "progress" else event["data"]["job_id"]
        record = self._store.get(job_id)
        if record is None or record.has_ended:
            return
        if event["type"] == "progress":
            self._saw(record, Progress(event["progress"], event["status"], preview_url=event.get("preview_url")))
        elif event["type"] == "completed":
            self._completed(record, event["data"])
            self._forget(job_id)
        else:
            self._failed(record, event["data"]["error"])
            self._forget(job_id)

    def _start(self, video_id: str) -> None:
        task = asyncio.create_task(self._follow(video_id), name=video_id)
        self._tasks[video_id] = task
        task.add_done_callback(lambda done: self._over(video_id, done))

    def _over(self, video_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(video_id, None)
        self._progress.pop(video_id, None)
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s is not followed any more: %r", video_id, task.exception())

    def _forget(self, video_id: str) -> None:
        if (task := self._tasks.pop(video_id, None)) is not None:
            task.cancel()
        self._progress.pop(video_id, None)

    async def _follow(self, video_id: str) -> None:
        deadline, times_unknown = time.monotonic() + FOLLOW_WITHIN_S, 0
        run_id = self._record(video_id).run_id
        while time.monotonic() < deadline:
            try:
                if run_id is None:
                    run_id = await self._send(video_id)
                job = Job(run_id, video_id)
                state = await self._backend.status(job, timeout_s=deadline - time.monotonic())
                if state.has_ended:
                    answer = delivered(state, job)
                    video = next(each for each in answer["videos"] if each["status"] == "completed")
                    return self._completed(self._record(video_id), video)
                if state.status != "IN_QUEUE":
                    self._saw(self._record(video_id), state.progress)
            except JobNotFound as failure:
                times_unknown += 1
                if times_unknown > 1:
                    return self._failed(self._record(video_id), _error_of(failure))
                run_id = None  # what the worker has made is in its journal, under the same job_id
                continue
            except VideoGenError as failure:
                if isinstance(failure, VideoFailed) or not failure.retryable:
                    return self._failed(self._record(video_id), _error_of(failure))
                logger.warning("%s: %s", video_id, failure.message)
            await asyncio.sleep(max(self._poll_s, len(self._tasks) / _LOOKS_PER_S))
        error = {"code": "timeout", "message": "the job was not done within 24 hours"}
        return self._failed(self._record(video_id), error)

    async def _send(self, video_id: str) -> str:
        """Sends the job, and returns the endpoint's id of it."""
        payload = cast(Input, self._store.payload(video_id))
        job = await self._backend.submit(payload, timeout_s=SUBMIT_WITHIN_S)
        self._store.save(replace(self._record(video_id), run_id=job.id))
        return job.id

    def _record(self, video_id: str) -> Record:
        """Of a video that is followed: whoever removes it ends the task first."""
        return cast(Record, self._store.get(video_id))

    def _saw(self, record: Record, progress: Progress | None) -> None:
        shown = record.shown
        if progress is not None:
            self._progress[record.id] = progress
            if progress.preview_url is not None:
                shown = {**shown, "preview_url": progress.preview_url}
        if record.status != "in_progress" or shown != record.shown:
            self._store.save(replace(record, status="in_progress", shown=shown))

    def _completed(self, record: Record, video: Mapping[str, Any]) -> None:
        shown = {name: video[name] for name in (*_SHOWN, "preview_url") if video.get(name) is not None}
        done = replace(
            record,
            status="completed",
            completed_at=int(time.time()),
            size=video.get("resolution") or record.size,
            seconds=f"{video['duration_seconds']:g}" if "duration_seconds" in video else record.seconds,
            shown=shown,
        )
        self._store.save(done, video)
        self._on_end(done.status)

    def _failed(self, record: Record, error: Mapping[str, Any]) -> None:
        shown = {"code": error["code"], "message": error["message"], "param": param_of(error.get("path"))}
        self._store.save(replace(record, status="failed", completed_at=int(time.time()), error=shown))
        self._on_end("failed")


def _error_of(failure: VideoGenError) -> dict[str, Any]:
    return {
        "code": getattr(failure, "code", "endpoint_failed"),
        "message": failure.message,
        "path": getattr(failure, "path", None),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
