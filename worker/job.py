"""The flow of one job, and the only error boundary.

Reads as the contract does: accept; for each video inputs, generate and encode, store, record, tell; then the answer.
The GPU works in one thread. Upload and webhook of a video overlap the generation of the next, whose inputs are fetched
meanwhile. Whatever is raised below ends here as an error of `worker.errors`.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from worker import answers, earlier, making, postman, prepare
from worker.answers import Stopwatch
from worker.delivering import Deliveries
from worker.earlier import Earlier
from worker.engine import DeviceLost
from worker.errors import Cancelled, Internal, JobTimeout
from worker.journal import Entry, payload_digest
from worker.log import job_scope
from worker.making import Made
from worker.payload import Limits
from worker.prepare import Prepared
from worker.progress import Progress, ProgressEvent
from worker.request import Job, VideoRequest, contact, parse
from worker.services import Worker
from worker.stop import Stop, as_worker_error
from worker.webhooks import Channel

logger = logging.getLogger(__name__)
Report = Callable[[ProgressEvent], None]


async def run(event: Mapping[str, Any], worker: Worker, report: Report) -> dict[str, Any]:
    """Answer one RunPod event; what goes wrong is in the answer and in the webhooks, never an exception.

    Cancelling the task stops the job: the step in hand ends, finished videos are still delivered, and the rest is
    answered as `cancelled`. `report` is given each progress event.

    Raises CancelledError only where a shutdown leaves videos for the next delivery of the job: then there is no answer
    to give, and RunPod gives the job to another worker.
    """
    stop = Stop()
    tidying = asyncio.create_task(tidy(worker))
    flow = asyncio.create_task(_run(event, worker, report, stop))
    while not flow.done():
        try:
            await asyncio.shield(flow)
        except asyncio.CancelledError:
            stop.request(Cancelled())
    tidying.cancel()
    return flow.result()


async def tidy(worker: Worker) -> None:
    """Store and send what earlier jobs and other workers could not, drop what has expired. Bounded; never raises."""
    stop = threading.Event()
    secrets = worker.settings.webhook_secrets
    try:
        await asyncio.gather(
            asyncio.to_thread(worker.spool.drain, worker.storage, worker.journal, stop=stop),
            postman.redeliver(worker.outbox, opener=worker.opener, secrets=secrets, journal=worker.journal),
            asyncio.to_thread(worker.journal.sweep),
        )
    except Exception as failure:
        logger.error("tidying up failed", exc_info=failure)
    finally:
        stop.set()


async def _run(event: Mapping[str, Any], worker: Worker, report: Report, stop: Stop) -> dict[str, Any]:
    stopwatch = Stopwatch()
    payload = event.get("input")
    job_id, webhook_url, events = contact(payload, default_job_id=str(event.get("id", "local")))
    settings = worker.settings
    try:
        digest = payload_digest(payload)
    except (RecursionError, TypeError, ValueError) as failure:  # nothing that JSON of a sane depth can hold
        error = as_worker_error(failure, job_id, stop)
        return answers.refused_answer(job_id, error, stopwatch.total())
    with job_scope(job_id, private=_private(payload)):
        channel = Channel(
            url=webhook_url,
            events=events,
            job_id=job_id,
            total=_count(payload),
            payload_digest=digest,
            opener=worker.opener,
            secrets=settings.webhook_secrets,
            outbox=worker.outbox,
            journal=worker.journal,
        )
        timer = asyncio.get_running_loop().call_later(
            settings.job_timeout_s,
            stop.request,
            JobTimeout(
                f"the job took longer than {settings.job_timeout_s:g} s (JOB_TIMEOUT_S): send fewer or shorter videos"
            ),
        )
        try:
            with worker.shutdown.watching(stop):
                job, entry = await _accept(payload, job_id, digest, worker)
                return await _JobRun(job, entry, worker, channel, report, stop).answer(stopwatch)
        except Exception as failure:
            error = as_worker_error(failure, job_id, stop)
            await channel.failed(None, answers.video_failure(job_id, None, error), error.http_code, str(error))
            return answers.refused_answer(job_id, error, stopwatch.total())
        finally:
            timer.cancel()
            await channel.close()


async def _accept(payload: object, job_id: str, digest: str, worker: Worker) -> tuple[Job, Entry]:
    settings = worker.settings
    limits = Limits(settings.max_videos_per_job, settings.max_pixels, settings.max_frames)
    job = parse(payload, default_job_id=job_id, limits=limits)
    if job.webhook_url is not None:
        worker.opener.check(job.webhook_url, path="webhook_url")
    seeds = [video.seed for video in job.videos]
    entry = await asyncio.to_thread(
        worker.journal.accept, job.job_id, digest, today=datetime.now(UTC).date(), seeds=seeds
    )
    videos = tuple(replace(video, seed=seed) for video, seed in zip(job.videos, entry.seeds, strict=True))
    logger.info("accepted: %d video(s)", len(videos))
    return replace(job, videos=videos), entry


class _JobRun:
    """One accepted job on its way."""

    def __init__(self, job: Job, entry: Entry, worker: Worker, channel: Channel, report: Report, stop: Stop) -> None:
        self._job = job
        self._entry = entry
        self._worker = worker
        self._channel = channel
        self._stop = stop
        self._progress = Progress(len(job.videos), [channel.progress, report])
        self._preparing: dict[int, asyncio.Task[Prepared]] = {}
        self._earlier: dict[int, Earlier] = {}
        self._deliveries = Deliveries(entry, worker, channel, self._progress, stop)
        self._device_lost = False

    async def answer(self, stopwatch: Stopwatch) -> dict[str, Any]:
        """Make the videos one after the other; deliver each while the next is made."""
        deliveries: list[asyncio.Task[dict[str, Any]]] = []
        self._progress.stage(0, "queued")
        self._earlier = await self._left_by_earlier_deliveries()
        with tempfile.TemporaryDirectory(prefix="videogen-job-") as folder:
            for video in self._job.videos:
                delivery = await self._one(video, Path(folder), deliveries[-1] if deliveries else None)
                deliveries.append(delivery)
            results = await asyncio.gather(*deliveries)
        if self._deliveries.left:
            logger.warning("%d video(s) are left for the next delivery of the job", self._deliveries.left)
            raise asyncio.CancelledError
        answer = answers.job_answer(self._job.job_id, results, stopwatch.total())
        if self._device_lost:
            answer["refresh_worker"] = True  # the SDK takes it out and restarts the worker after the answer
        logger.info("answered: %s in %.1f s", answer["status"], stopwatch.total())
        return answer

    async def _one(
        self, video: VideoRequest, folder: Path, previous: asyncio.Task[dict[str, Any]] | None
    ) -> asyncio.Task[dict[str, Any]]:
        left = self._earlier.get(video.index)
        if left is not None:
            return asyncio.create_task(self._deliveries.again(video.index, left, previous))
        stopwatch = Stopwatch()
        try:
            self._stop.check()
            if self._device_lost:
                raise Internal(self._job.job_id)
            self._progress.stage(video.index, "loading")
            with stopwatch.stage("inputs"):
                prepared = await self._prepared(video)
            self._prepare_next(video.index + 1)
            made = await self._on_gpu(prepared, folder, stopwatch)
        except Exception as failure:
            self._device_lost = self._device_lost or isinstance(failure, DeviceLost)
            error = as_worker_error(failure, self._job.job_id, self._stop)
            return asyncio.create_task(self._deliveries.failed(video.index, error, previous))
        return asyncio.create_task(self._deliveries.made(made, previous))

    async def _on_gpu(self, prepared: Prepared, folder: Path, stopwatch: Stopwatch) -> Made:
        work = partial(
            making.make,
            prepared,
            folder,
            stopwatch,
            engine=self._worker.engine,
            progress=self._progress,
            stop=self._stop,
        )
        return await asyncio.get_running_loop().run_in_executor(self._worker.gpu, copy_context().run, work)

    def _prepare_next(self, index: int) -> None:
        if index < len(self._job.videos) and index not in self._earlier:
            video = self._job.videos[index]
            self._preparing[index] = asyncio.create_task(
                asyncio.to_thread(
                    prepare.prepare,
                    video,
                    self._worker.engine,
                    self._worker.opener,
                    self._worker.loras,
                    self._stop.event,
                )
            )

    async def _prepared(self, video: VideoRequest) -> Prepared:
        if video.index not in self._preparing:
            self._prepare_next(video.index)
        return await self._preparing.pop(video.index)

    async def _left_by_earlier_deliveries(self) -> dict[int, Earlier]:
        """What need not be made again, by the video's index."""
        worker = self._worker

        def find(index: int) -> Earlier | None:
            return earlier.find(
                index, entry=self._entry, journal=worker.journal, spool=worker.spool, storage=worker.storage
            )

        left = await asyncio.gather(*(asyncio.to_thread(find, video.index) for video in self._job.videos))
        return {video.index: found for video, found in zip(self._job.videos, left, strict=True) if found is not None}


def _private(payload: object) -> list[str]:
    """The texts of a payload that no log may hold, whatever exception they come in."""
    if not isinstance(payload, Mapping):
        return []
    videos = payload.get("job_request_params")
    requests = [payload, *(videos if isinstance(videos, list) else [])]
    texts = [r.get(name) for r in requests if isinstance(r, Mapping) for name in ("prompt", "negative_prompt")]
    return [text.strip() for text in texts if isinstance(text, str)]


def _count(payload: object) -> int:
    videos = payload.get("job_request_params") if isinstance(payload, Mapping) else None
    return len(videos) if isinstance(videos, list) else 1
