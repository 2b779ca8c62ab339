"""What becomes of a video once it is made, or failed: store, record, tell.

Each method is a task of its own beside the generation of the next video, and tells after the task of the video before
it, so that the final events of a job go out in order. A video that the storage does not take is kept for later.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from worker import answers
from worker.artifacts import Delivery
from worker.earlier import Earlier
from worker.errors import UploadFailed, WorkerError
from worker.journal import Entry
from worker.making import Made
from worker.progress import Progress
from worker.services import Worker
from worker.shutdown import ShuttingDown
from worker.spool import Found
from worker.stop import Stop, as_worker_error
from worker.storage import video_key
from worker.webhooks import Channel

logger = logging.getLogger(__name__)
Outcome = dict[str, Any]
Told = asyncio.Task[Outcome] | None


class Deliveries:
    """The deliveries of one job. Each answers the video's result or failure as the caller reads it.

    `left` counts the videos that a shutdown leaves, untold, for the next delivery of the job.
    """

    def __init__(self, entry: Entry, worker: Worker, channel: Channel, progress: Progress, stop: Stop) -> None:
        self._job_id = entry.job_id
        self._entry = entry
        self._worker = worker
        self._channel = channel
        self._progress = progress
        self._stop = stop
        self.left = 0

    async def made(self, made: Made, previous: Told) -> dict[str, Any]:
        """Store, record, tell."""
        index, job_id = made.request.index, self._job_id
        self._progress.stage(index, "uploading")
        try:
            try:
                with made.stopwatch.stage("upload"):
                    delivery = await asyncio.to_thread(self._worker.storage.store, made.file, self._key(index))
            except UploadFailed:
                await self._keep(made)
                raise
            result = self._result(made, delivery)
            await asyncio.to_thread(self._worker.journal.record_result, job_id, index, result)
        except Exception as failure:
            return await self.failed(index, as_worker_error(failure, job_id, self._stop), previous)
        logger.info("video %d: stored, %d bytes, %s", index, made.file.size_bytes, made.stopwatch.read())
        return await self._tell(result, previous)

    def _result(self, made: Made, delivery: Delivery) -> dict[str, Any]:
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
            cost_usd=answers.cost_usd(made.gpu_seconds, self._worker.settings.gpu_hourly_usd),
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

    async def again(self, index: int, left: Earlier, previous: Told) -> dict[str, Any]:
        """Tell what an earlier delivery of the job made, stored first where it waits for that."""
        if isinstance(left, Found):
            worker = self._worker
            self._progress.stage(index, "uploading")
            try:
                left = await asyncio.to_thread(
                    worker.spool.upload, left, worker.storage, worker.journal, stop=self._stop.event
                )
            except Exception as failure:
                return await self.failed(index, as_worker_error(failure, self._job_id, self._stop), previous)
        return await self._tell(left, previous)

    async def _tell(self, result: dict[str, Any], previous: Told) -> dict[str, Any]:
        """Send the final event of a finished video, after that of the video before it."""
        if previous is not None:
            await previous
        self._progress.finished(result["index"])
        await self._channel.completed(result["index"], result)
        return result

    async def failed(self, index: int, error: WorkerError, previous: Told) -> dict[str, Any]:
        if previous is not None:
            await previous
        if isinstance(error, ShuttingDown):
            self.left += 1
            return {}
        logger.warning("video %d failed: %s", index, error.code)
        failure = answers.video_failure(self._job_id, index, error)
        self._progress.finished(index)
        await self._channel.failed(index, failure, error.http_code, str(error))
        return failure
