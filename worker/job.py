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
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from worker import answers, earlier, encode, postman, prepare, prompt
from worker.answers import Stopwatch
from worker.artifacts import Delivery, VideoFile
from worker.earlier import Earlier
from worker.engine import DeviceLost, Engine, Rendering
from worker.errors import Cancelled, Internal, JobTimeout, UploadFailed, WorkerError
from worker.journal import Entry, Journal, payload_digest
from worker.log import fingerprint, job_scope
from worker.loras import LoraStore
from worker.net import Opener
from worker.outbox import Outbox
from worker.payload import Limits
from worker.prepare import Prepared
from worker.progress import Progress, ProgressEvent
from worker.request import Job, VideoRequest, contact, parse
from worker.settings import Settings
from worker.shutdown import Shutdown, ShuttingDown
from worker.spool import Found, Spool
from worker.stop import Stop
from worker.storage import Storage, video_key
from worker.webhooks import Channel

logger = logging.getLogger(__name__)
T = TypeVar("T")
Report = Callable[[ProgressEvent], None]


@dataclass(frozen=True, slots=True)
class Worker:
    """What every job needs, made once for the process."""

    settings: Settings
    engine: Engine
    opener: Opener
    loras: LoraStore
    storage: Storage
    journal: Journal
    outbox: Outbox
    spool: Spool
    gpu: ThreadPoolExecutor
    shutdown: Shutdown


@dataclass(frozen=True, slots=True)
class Made:
    """A video that is encoded and waits to be stored. `gpu_seconds`: how long it held the GPU's thread and its turn."""

    request: VideoRequest
    prompt: str
    rendering: Rendering
    file: VideoFile
    stopwatch: Stopwatch
    gpu_seconds: float


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
        error = _translated(failure, job_id, stop)
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
            error = _translated(failure, job_id, stop)
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
        self._left = 0
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
        if self._left:
            logger.warning("%d video(s) are left for the next delivery of the job", self._left)
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
            return asyncio.create_task(self._deliver_again(video.index, left, previous))
        stopwatch = Stopwatch()
        try:
            self._stop.check()
            if self._device_lost:
                raise Internal(self._job.job_id)
            self._progress.stage(video.index, "loading")
            with stopwatch.stage("inputs"):
                prepared = await self._prepared(video)
            self._prepare_next(video.index + 1)
            made = await self._on_gpu(self._make, prepared, folder, stopwatch)
        except Exception as failure:
            self._device_lost = self._device_lost or isinstance(failure, DeviceLost)
            error = _translated(failure, self._job.job_id, self._stop)
            return asyncio.create_task(self._fail(video.index, error, previous))
        return asyncio.create_task(self._deliver(made, previous))

    async def _on_gpu(self, work: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker.gpu, copy_context().run, work, *arguments)

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

    def _make(self, prepared: Prepared, folder: Path, stopwatch: Stopwatch) -> Made:
        """Generate and encode one video. Runs in the GPU's thread."""
        video, engine = prepared.request, self._worker.engine
        text = prompt.compose(video.prompt, camera_motion=video.camera_motion, enhance=video.enhance_prompt)
        logger.info("video %d: %s, prompt %s", video.index, video.mode, fingerprint(text))
        watcher = _Watcher(self._progress, video.index)
        rendering = engine.generate(
            video, text, prepared.conditioning, loras=prepared.loras, watcher=watcher, stop=self._stop
        )
        for stage, seconds in rendering.seconds.items():
            stopwatch.add(stage, seconds)

        def on_frame(done: int) -> None:
            self._stop.check()
            self._progress.stage(video.index, "encoding", done / rendering.num_frames)

        with stopwatch.stage("encode"):
            file = encode.encode(
                rendering.frames(),
                path=folder / f"{video.index}.mp4",
                width=rendering.width,
                height=rendering.height,
                num_frames=rendering.num_frames,
                fps=video.fps,
                poster=folder / f"{video.index}.jpg" if video.thumbnail else None,
                on_frame=on_frame,
            )
        return Made(video, text, rendering, file, stopwatch, stopwatch.total())

    async def _deliver(self, made: Made, previous: asyncio.Task[dict[str, Any]] | None) -> dict[str, Any]:
        """Store, record, tell."""
        index, job_id = made.request.index, self._job.job_id
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
            return await self._fail(index, _translated(failure, job_id, self._stop), previous)
        logger.info("video %d: stored, %d bytes, %s", index, made.file.size_bytes, made.stopwatch.read())
        return await self._tell(result, previous)

    def _result(self, made: Made, delivery: Delivery) -> dict[str, Any]:
        engine = self._worker.engine
        return answers.video_result(
            job_id=self._job.job_id,
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
        return video_key(self._job.job_id, index, self._entry.accepted_on)

    async def _keep(self, made: Made) -> None:
        """Keep what the storage did not take, for the next delivery of the job or any worker's `tidy`."""
        index = made.request.index
        await asyncio.to_thread(
            self._worker.spool.keep,
            made.file,
            job_id=self._job.job_id,
            payload_digest=self._entry.payload_digest,
            index=index,
            key=self._key(index),
            result=self._result(made, Delivery("", None)),
        )

    async def _left_by_earlier_deliveries(self) -> dict[int, Earlier]:
        """What need not be made again, by the video's index."""
        worker = self._worker

        def find(index: int) -> Earlier | None:
            return earlier.find(
                index, entry=self._entry, journal=worker.journal, spool=worker.spool, storage=worker.storage
            )

        left = await asyncio.gather(*(asyncio.to_thread(find, video.index) for video in self._job.videos))
        return {video.index: found for video, found in zip(self._job.videos, left, strict=True) if found is not None}

    async def _deliver_again(
        self, index: int, left: Earlier, previous: asyncio.Task[dict[str, Any]] | None
    ) -> dict[str, Any]:
        """Tell what an earlier delivery of the job made, stored first where it waits for that."""
        if isinstance(left, Found):
            worker = self._worker
            self._progress.stage(index, "uploading")
            try:
                left = await asyncio.to_thread(
                    worker.spool.upload, left, worker.storage, worker.journal, stop=self._stop.event
                )
            except Exception as failure:
                return await self._fail(index, _translated(failure, self._job.job_id, self._stop), previous)
        return await self._tell(left, previous)

    async def _tell(self, result: dict[str, Any], previous: asyncio.Task[dict[str, Any]] | None) -> dict[str, Any]:
        """Send the final event of a finished video, after that of the video before it."""
        if previous is not None:
            await previous
        self._progress.finished(result["index"])
        await self._channel.completed(result["index"], result)
        return result

    async def _fail(
        self, index: int, error: WorkerError, previous: asyncio.Task[dict[str, Any]] | None
    ) -> dict[str, Any]:
        if previous is not None:
            await previous
        if isinstance(error, ShuttingDown):
            self._left += 1
            return {}
        logger.warning("video %d failed: %s", index, error.code)
        failure = answers.video_failure(self._job.job_id, index, error)
        self._progress.finished(index)
        await self._channel.failed(index, failure, error.http_code, str(error))
        return failure


class _Watcher:
    """Passes what the engine does on to the progress of one video."""

    def __init__(self, progress: Progress, index: int) -> None:
        self._progress = progress
        self._index = index

    def loading(self, fraction: float) -> None:
        self._progress.stage(self._index, "loading", fraction)

    def generating(self, fraction: float) -> None:
        self._progress.stage(self._index, "generating", fraction)


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


def _translated(failure: Exception, job_id: str, stop: Stop) -> WorkerError:
    """Every exception as an error of the contract; what was not foreseen is logged whole and told without detail."""
    if isinstance(failure, Cancelled) and stop.requested:
        return stop.reason
    if isinstance(failure, WorkerError):
        return failure
    logger.error("unforeseen failure", exc_info=failure)
    return Internal(job_id)
