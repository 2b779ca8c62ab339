"""What becomes of a video once it is made, or failed: store, record, tell.

Each method is a task of its own beside the generation of the next video, and tells after the task of the video before
it, so that the final events of a job go out in order. A video that the storage does not take is kept for later.
"""

from __future__ import annotations

import asyncio
from typing import Any

from worker.base import timing
from worker.base.errors import UploadFailed, WorkerError
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop, as_worker_error
from worker.base.timing import Stopwatch
from worker.delivery.journal import Entry
from worker.delivery.spool import Found
from worker.delivery.storage import video_key
from worker.delivery.storage.base import Delivery
from worker.delivery.webhooks.channel import Channel
from worker.jobs import answers, report
from worker.jobs.accept import Earlier
from worker.jobs.make import Made
from worker.jobs.progress import Progress
from worker.jobs.services import Services
from worker.request import VideoRequest

Outcome = dict[str, Any]
Told = asyncio.Task[Outcome] | None


class Deliveries:
    """The deliveries of one job. Each answers the video's result or failure as the caller reads it.

    `left` counts the videos that a shutdown leaves, untold, for the next delivery of the job.
    """

    def __init__(self, entry: Entry, worker: Services, channel: Channel, progress: Progress, stop: Stop) -> None:
        self._job_id = entry.job_id
        self._entry = entry
        self._worker = worker
        self._channel = channel
        self._progress = progress
        self._stop = stop
        self._gpu_seconds = 0.0
        self.left = 0

    async def made(self, made: Made, previous: Told) -> Outcome:
        """Store, record, tell."""
        index, job_id, worker = made.request.index, self._job_id, self._worker
        self._progress.stage(index, "uploading")
        try:
            try:
                with made.stopwatch.stage("upload"), timing.timed(index, "upload", size_bytes=made.file.size_bytes):
                    delivery = await asyncio.to_thread(worker.storage.store, made.file, self._key(index))
            except UploadFailed:
                await self._keep(made)
                raise
            result = self._result(made, delivery)
            # Of a video that an earlier delivery recorded, and that is gone, the new record takes the place.
            gone = self._entry.finished.get(index)
            await asyncio.to_thread(worker.journal.record_result, job_id, index, result, replacing=gone)
        except Exception as failure:
            error = as_worker_error(failure, job_id, self._stop)
            return await self.failed(made.request, error, previous, made.stopwatch, gpu_seconds=made.gpu_seconds)
        await self._tell(result, previous)
        self._gpu_seconds += made.gpu_seconds
        report.video_completed(made.request, result, gpu_seconds=made.gpu_seconds, peak_vram_bytes=made.peak_vram_bytes)
        return result

    def cost_usd(self) -> float | None:
        """What the GPU cost for the videos so far, those that failed included."""
        return timing.cost_usd(self._gpu_seconds, self._worker.settings.gpu_hourly_usd)

    def _result(self, made: Made, delivery: Delivery) -> Outcome:
        engine = self._worker.engine
        return answers.video_result(
            job_id=self._job_id,
            request=made.request,
            spec=engine.spec_for(made.request),
            prompt=made.prompt,
            parameters=made.rendering.parameters,
            warnings=made.rendering.warnings,
            video=made.file,
            delivery=delivery,
            timings=made.stopwatch.read(),
            gpu=engine.gpu,
            cost_usd=timing.cost_usd(made.gpu_seconds, self._worker.settings.gpu_hourly_usd),
        )

    def _key(self, index: int) -> str:
        return video_key(self._job_id, index, self._entry.accepted_on)

    async def _keep(self, made: Made) -> None:
        """Keep what the storage did not take, for the next delivery of the job or any worker's `tidy`."""
        index = made.request.index
        await asyncio.to_thread(
            self._worker.spool.keep,
            made.file,
            job_id=self._job_id,
            payload_digest=self._entry.payload_digest,
            index=index,
            key=self._key(index),
            result=self._result(made, Delivery("", None)),
        )

    async def again(self, video: VideoRequest, left: Earlier, previous: Told) -> Outcome:
        """Tell what an earlier delivery of the job made, stored first where it waits for that."""
        if isinstance(left, Found):
            worker, stopwatch = self._worker, Stopwatch()
            self._progress.stage(video.index, "uploading")
            try:
                with stopwatch.stage("upload"):
                    left = await asyncio.to_thread(
                        worker.spool.upload, left, worker.storage, worker.journal, stop=self._stop.event
                    )
            except Exception as failure:
                error = as_worker_error(failure, self._job_id, self._stop)
                return await self.failed(video, error, previous, stopwatch, gpu_seconds=0.0)
        await self._tell(left, previous)
        report.video_again(video)
        return left

    async def _tell(self, result: Outcome, previous: Told) -> None:
        """Send the final event of a finished video, after that of the video before it."""
        if previous is not None:
            await previous
        self._progress.finished(result["index"])
        await self._channel.completed(result["index"], result)

    async def failed(
        self,
        video: VideoRequest,
        error: WorkerError,
        previous: Told,
        stopwatch: Stopwatch,
        *,
        gpu_seconds: float | None = None,
    ) -> Outcome:
        """Tell a failure. `gpu_seconds` is what the video held the GPU for; None where it was not made: all of it."""
        held_s = stopwatch.worked_s() if gpu_seconds is None else gpu_seconds
        if previous is not None:
            await previous
        self._gpu_seconds += held_s
        cost_usd = timing.cost_usd(held_s, self._worker.settings.gpu_hourly_usd)
        if isinstance(error, ShuttingDown):
            self.left += 1
            report.video_left(video, gpu_seconds=held_s, cost_usd=cost_usd)
            return {}
        failure = answers.video_failure(self._job_id, video.index, error)
        self._progress.finished(video.index)
        await self._channel.failed(video.index, failure, error.http_code, str(error))
        report.video_failed(video, error, stopwatch.read(), gpu_seconds=held_s, cost_usd=cost_usd)
        return failure
