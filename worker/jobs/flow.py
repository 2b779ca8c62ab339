"""The flow of one job, and the only error boundary.

Reads as the contract does: accept; for each video inputs, generate and encode, store, record, send; then the answer.
The GPU works in one thread. Upload and webhook of a video overlap the generation of the next, whose inputs are fetched
meanwhile. Whatever is raised below ends here as an error of `worker.base.errors`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from worker.base import scratch, timing
from worker.base.errors import Cancelled, Internal, InvalidRequest, JobTimeout, WorkerError
from worker.base.log import job_scope
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop, as_worker_error
from worker.base.timing import Stopwatch
from worker.delivery.journal import Entry
from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.progress_sender import ProgressEvent
from worker.engine import DeviceLost, Video
from worker.jobs import accept, answers, inline, make, prepare, segments
from worker.jobs.accept import Earlier
from worker.jobs.deliver import Deliveries, Previous
from worker.jobs.make import Made
from worker.jobs.prepare_segments import prepare_segments
from worker.jobs.previews import JobPreviews
from worker.jobs.progress import Progress
from worker.jobs.report import VideoReport, job_answered, job_left, job_refused
from worker.jobs.services import Services
from worker.jobs.tidy import give_back_memory, tidy
from worker.jobs.train import TrainingFlow
from worker.media.marks.ingredients import Ingredients
from worker.net.language_model import LanguageModel
from worker.request import Job, VideoRequest
from worker.request.contact import contact
from worker.request.training import is_training

logger = logging.getLogger(__name__)
Report = Callable[[ProgressEvent], None]


async def run(event: Mapping[str, Any], worker: Services, report: Report) -> dict[str, Any]:
    """Answer one RunPod event; what goes wrong is in the answer and in the webhooks, never an exception.

    Cancelling the task stops the job: the current step ends, finished videos are still delivered, and the rest fail as
    `cancelled`. `report` receives each progress event.

    Raises CancelledError only where a shutdown leaves videos for the next delivery of the job: then there is no answer,
    and RunPod gives the job to another worker.
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
    await asyncio.to_thread(give_back_memory)
    return flow.result()


async def _run(event: Mapping[str, Any], worker: Services, report: Report, stop: Stop) -> dict[str, Any]:
    stopwatch = Stopwatch()
    payload = event.get("input")
    settings, known = worker.settings, contact(payload, default_job_id=str(event.get("id", "local")))
    job_id = known.job_id
    with job_scope(job_id, private=known.private_texts):
        channel = Channel(
            url=known.webhook_url,
            events=known.events,
            job_id=job_id,
            total=known.video_count,
            payload_digest="" if known.digest is None else known.digest,
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
            if known.digest is None:
                raise InvalidRequest("is nested too deep: send the fields alone", path="input")
            with worker.shutdown.watching(stop, channel.hurry):
                if is_training(payload):
                    progress = Progress(1, [channel.progress, report])
                    training = TrainingFlow(worker, channel, progress, stop, stopwatch)
                    return await training.answer(payload, job_id, known.digest)
                job, entry = await accept.accept(payload, job_id, known.digest, worker)
                return await _JobRun(job, entry, worker, channel, report, stop, stopwatch).answer()
        except Exception as failure:
            error = as_worker_error(failure, job_id, stop)
            stopwatch.lap("accept")
            if isinstance(error, ShuttingDown):
                job_left(known.video_count, stopwatch.read()["total"])
                raise asyncio.CancelledError from None
            await channel.failed(None, answers.video_failure(job_id, None, error), error.http_code, str(error))
            answer = _refused(job_id, error, stopwatch)
            return {**answer, "refresh_worker": True} if isinstance(failure, DeviceLost) else answer
        finally:
            timer.cancel()
            await channel.close()


def _refused(job_id: str, error: WorkerError, stopwatch: Stopwatch) -> dict[str, Any]:
    stopwatch.lap("deliver")
    answer = answers.refused_answer(job_id, error, stopwatch.read())
    with job_scope(job_id):
        job_refused(error)
        job_answered(answer, None, code=error.code)
    return answer


class _JobRun:
    """One accepted job on its way.

    `entry` is its entry in the journal; `report` receives each progress event; `stop` ends it; `stopwatch` counts the
    seconds of its answer.
    """

    def __init__(
        self,
        job: Job,
        entry: Entry,
        worker: Services,
        channel: Channel,
        report: Report,
        stop: Stop,
        stopwatch: Stopwatch,
    ) -> None:
        self._job = job
        self._entry = entry
        self._worker = worker
        self._stop = stop
        self._stopwatch = stopwatch
        self._progress = Progress(len(job.videos), [channel.progress, report])
        self._preparing: dict[int, asyncio.Task[Video]] = {}
        self._earlier: dict[int, Earlier] = {}
        self._in_answer = inline.limits(job.videos, worker.settings)
        self._previews = JobPreviews(entry, worker, self._progress, stop)
        self._deliveries = Deliveries(entry, worker, channel, self._progress, stop, self._in_answer, self._previews)
        self._device_lost = False
        self._folder = Path()

    async def answer(self) -> dict[str, Any]:
        """Make the videos one after the other; deliver each while the next is made."""
        deliveries: list[asyncio.Task[dict[str, Any]]] = []
        self._progress.stage(0, "queued")
        self._earlier = await accept.left_by_earlier_deliveries(self._job, self._entry, self._worker, self._stop.event)
        self._stopwatch.lap("accept")
        with scratch.folder("job") as folder:
            self._folder = folder
            for video in self._job.videos:
                report = VideoReport(video, self._progress, self._worker.settings.gpu_hourly_usd, self._previews)
                deliveries.append(await self._one(video, folder, report, deliveries[-1] if deliveries else None))
                self._stopwatch.split(report.seconds())
            results = await asyncio.gather(*deliveries)
            self._previews.close()
        self._stopwatch.lap("deliver")
        timings = self._stopwatch.read()
        if self._deliveries.left:
            job_left(self._deliveries.left, timings["total"])
            raise asyncio.CancelledError
        answer = answers.job_answer(self._job.job_id, results, timings)
        if self._device_lost:
            answer["refresh_worker"] = True  # the SDK takes it out and restarts the worker after the answer
        job_answered(answer, self._deliveries.cost_usd())
        return answer

    async def _one(
        self, request: VideoRequest, folder: Path, report: VideoReport, previous: Previous
    ) -> asyncio.Task[dict[str, Any]]:
        """Make one video; returns the task that delivers it, or its failure."""
        index = request.index
        if (left := self._earlier.get(index)) is not None:
            return asyncio.create_task(self._deliveries.again(request, left, report, previous))
        try:
            self._stop.check()
            if self._device_lost:
                raise Internal(self._job.job_id)
            with report.lapped("inputs"):
                video = await self._prepared(index)
            inline.check(video, inline.before_marks(self._in_answer, video, self._worker.marker))
            self._prepare_next(index + 1)
            made = await self._on_gpu(video, folder, report)
        except Exception as failure:
            self._device_lost = self._device_lost or isinstance(failure, DeviceLost)
            return asyncio.create_task(self._deliveries.failed(index, failure, report, previous))
        self._device_lost = self._device_lost or isinstance(made.unfinished, DeviceLost)
        return asyncio.create_task(self._deliveries.made(made, report, previous))

    async def _on_gpu(self, video: Video, folder: Path, report: VideoReport) -> Made:
        work = partial(make.make, video, folder, report, engine=self._worker.engine, stop=self._stop)
        if video.segments:
            work = partial(
                segments.make,
                *(video, folder, report),
                engine=self._worker.engine,
                stop=self._stop,
                kept=self._worker.segments,
                entry=self._entry,
            )
        return await asyncio.get_running_loop().run_in_executor(self._worker.gpu, copy_context().run, work)

    def _prepare_next(self, index: int) -> None:
        if index < len(self._job.videos) and index not in self._earlier:
            task = asyncio.create_task(asyncio.to_thread(self._prepare, index))
            task.add_done_callback(_retrieved)
            self._preparing[index] = task

    def _prepare(self, index: int) -> Video:
        """Blocks. The log has the seconds that this took, the video's timings those that the video waited for it."""
        worker, videos = self._worker, self._job.videos
        following = [video for video in videos[index + 1 :] if video.index not in self._earlier]
        with timing.timed(index, "inputs"):
            ingredients = Ingredients(wanted=worker.marker.keeps_ingredients, stop=self._stop.event)
            one = partial(
                prepare.prepare,
                engine=worker.engine,
                opener=worker.opener,
                loras=worker.loras,
                stop=self._stop.event,
                writer=LanguageModel.from_settings(worker.settings),
                max_pixels=worker.settings.max_pixels,
                seen=ingredients.add,
            )
            if videos[index].chain is None:
                video = one(videos[index], following)
            else:
                video = prepare_segments(
                    *(videos[index], following, self._folder),
                    engine=worker.engine,
                    one=one,
                    opener=worker.opener,
                    loras=worker.loras,
                    stop=self._stop.event,
                    settings=worker.settings,
                    seen=ingredients.add,
                )
            return replace(video, ingredients=ingredients.archives)

    async def _prepared(self, index: int) -> Video:
        if index not in self._preparing:
            self._prepare_next(index)
        return await self._preparing.pop(index)


def _retrieved(task: asyncio.Task[Video]) -> None:
    """Read the failure of a preparation that a stop has made unnecessary: asyncio would log it as never retrieved."""
    if not task.cancelled():
        task.exception()
