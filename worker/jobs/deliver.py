"""What happens to a video once it is made, or failed: store, record, send its event.

Each method runs as a task of its own beside the generation of the next video. It sends its event after the task of the
video before it has sent its own, so that the final events of a job go out in order. A video that the storage does not
take is kept for later.
"""

from __future__ import annotations

import asyncio
from typing import Any

from worker.base import timing
from worker.base.errors import UploadFailed
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop, as_worker_error
from worker.delivery.journal import Entry
from worker.delivery.spool import Found
from worker.delivery.storage import video_key
from worker.delivery.storage.base import Delivery
from worker.delivery.webhooks.channel import Channel
from worker.jobs import answers
from worker.jobs.accept import Earlier
from worker.jobs.make import Made
from worker.jobs.progress import Progress
from worker.jobs.report import VideoReport
from worker.jobs.services import Services

Outcome = dict[str, Any]
Previous = asyncio.Task[Outcome] | None


class Deliveries:
    """The deliveries of one job. Each method returns the video's result or failure as the caller reads it.

    `left` counts the videos that a shutdown leaves, without an event, to the next delivery of the job.
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

    async def made(self, made: Made, report: VideoReport, previous: Previous) -> Outcome:
        """Store, record, send the event."""
        index, worker = made.video.request.index, self._worker
        try:
            try:
                with report.stage("upload", size_bytes=made.file.size_bytes):
                    delivery = await asyncio.to_thread(worker.storage.store, made.file, self._key(index))
            except UploadFailed:
                await self._keep(made, report)
                raise
            result = self._result(made, delivery, report)
            # Replace the record of a video that has since been deleted from storage.
            gone = self._entry.finished.get(index)
            await asyncio.to_thread(worker.journal.record_result, self._job_id, index, result, replacing=gone)
        except Exception as failure:
            return await self.failed(index, failure, report, previous)
        await self._send(result, previous)
        self._gpu_seconds += report.gpu_seconds
        report.completed(result, made.peak_vram_bytes)
        return result

    async def again(self, index: int, left: Earlier, report: VideoReport, previous: Previous) -> Outcome:
        """Send the event of what an earlier delivery of the job made; store it first where that is still to be done."""
        report.gpu_released()
        if isinstance(left, Found):
            worker, stop = self._worker, self._stop.event
            try:
                with report.lapped("upload"):
                    left = await asyncio.to_thread(worker.spool.upload, left, worker.storage, stop=stop)
            except Exception as failure:
                return await self.failed(index, failure, report, previous)
        await self._send(left, previous)
        report.again()
        return left

    async def failed(self, index: int, failure: Exception, report: VideoReport, previous: Previous) -> Outcome:
        """Send the event of a failure; of one that a shutdown is the reason for, nothing."""
        error = as_worker_error(failure, self._job_id, self._stop)
        del failure  # its traceback may hold tensors
        report.gpu_released()
        if previous is not None:
            await previous
        self._gpu_seconds += report.gpu_seconds
        if isinstance(error, ShuttingDown):
            self.left += 1
            report.left()
            return {}
        answer = answers.video_failure(self._job_id, index, error)
        self._progress.finished(index)
        await self._channel.failed(index, answer, error.http_code, str(error))
        report.failed(error)
        return answer

    def cost_usd(self) -> float | None:
        """What the GPU cost for the videos so far, those that failed included."""
        return timing.cost_usd(self._gpu_seconds, self._worker.settings.gpu_hourly_usd)

    def _result(self, made: Made, delivery: Delivery, report: VideoReport) -> Outcome:
        return answers.video_result(
            made,
            delivery,
            job_id=self._job_id,
            timings=report.timings(),
            gpu=self._worker.engine.gpu,
            cost_usd=report.cost_usd,
        )

    def _key(self, index: int) -> str:
        return video_key(self._job_id, index, self._entry.accepted_on)

    async def _keep(self, made: Made, report: VideoReport) -> None:
        """Keep what the storage did not take, for the next delivery of the job or any worker's `tidy`."""
        result = self._result(made, Delivery("", None), report)
        await asyncio.to_thread(self._worker.spool.keep, made.file, self._entry, made.video.request.index, result)

    async def _send(self, result: Outcome, previous: Previous) -> None:
        """Send the final event of a finished video, after that of the video before it."""
        if previous is not None:
            await previous
        self._progress.finished(result["index"])
        await self._channel.completed(result["index"], result)
