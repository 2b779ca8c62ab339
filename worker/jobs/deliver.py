"""What happens to a video once it is made, or failed: store, record, send its event.

Each method runs as a task of its own beside the generation of the next video. It sends its event after the task of the
video before it has sent its own, so that the final events of a job go out in order. A video that the storage does not
take, or not in time, is kept for later.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from worker.base import timing
from worker.base.errors import Cancelled, UploadFailed
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Stop, as_worker_error
from worker.delivery.journal import Entry
from worker.delivery.spool import Found
from worker.delivery.storage import Storage, video_key
from worker.delivery.storage.base import Delivery, refreshed, suffix_of
from worker.delivery.storage.presigned import PresignedStorage
from worker.delivery.webhooks.channel import Channel
from worker.jobs import answers, inline
from worker.jobs.accept import Earlier
from worker.jobs.make import Made
from worker.jobs.previews import JobPreviews
from worker.jobs.progress import Progress
from worker.jobs.report import VideoReport
from worker.jobs.services import Services
from worker.media import VideoFile
from worker.media.marks.provenance import Origin
from worker.media.shrink import encode_to_fit
from worker.request import VideoRequest

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]
Previous = asyncio.Task[Outcome] | None
# What is under way when a job is stopped has so long.
LAST_S = 3.0
# Another worker that makes the same job is waited for: as long as an upload may take.
ANOTHER_S = 240.0


class Deliveries:
    """The deliveries of one job. Each method returns the video's result or failure as the caller reads it.

    `in_answer` has the most bytes of each file that is to be in the answer, by the video's index. `left` counts the
    videos that a shutdown leaves, without an event, to the next delivery of the job.
    """

    def __init__(
        self,
        entry: Entry,
        worker: Services,
        channel: Channel,
        progress: Progress,
        stop: Stop,
        in_answer: Mapping[int, int],
        previews: JobPreviews,
    ) -> None:
        self._previews = previews
        self._job_id = entry.job_id
        self._entry = entry
        self._worker = worker
        self._channel = channel
        self._progress = progress
        self._stop = stop
        self._late = stop.late(LAST_S)
        self._in_answer = in_answer
        self._gpu_seconds = 0.0
        self.left = 0

    async def made(self, made: Made, report: VideoReport, previous: Previous) -> Outcome:
        """Store, record, send the event."""
        try:
            result = await asyncio.to_thread(self._stored, made, report)
        except Exception as failure:
            return await self.failed(made.video.request.index, failure, report, previous)
        await self._send(result, previous)
        self._gpu_seconds += report.gpu_seconds
        report.completed(result, made.peak_vram_bytes)
        return result

    async def again(self, request: VideoRequest, left: Earlier, report: VideoReport, previous: Previous) -> Outcome:
        """Send the event of what an earlier delivery of the job made; store it first where that is still to be done."""
        report.gpu_released()
        try:
            result = await asyncio.to_thread(self._stored_again, request, left, report)
        except Exception as failure:
            return await self.failed(request.index, failure, report, previous)
        await self._send(result, previous)
        report.again()
        return result

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

    def _stored(self, made: Made, report: VideoReport) -> Outcome:
        """Blocks. Made to fit into the answer, marked, stored and recorded, by nobody else meanwhile."""
        request, worker = made.video.request, self._worker
        if request.preview.only:
            return self._only_preview(made, report)
        storage = worker.storage_of(request)
        preview, shown = self._previews.finished(request)
        made, notes = self._fitted(made, report)
        notes += shown
        preview_url = None if preview is None else preview.url
        try:
            with worker.journal.storing(self._job_id, request.index, wait_s=ANOTHER_S, stopped=self._late.is_set):
                known = self._by_another_worker(request.index, storage)
                if known is not None:
                    return self._with_file(known, storage)
                with report.stage("upload") as figures:
                    made = self._marked(made)
                    figures["size_bytes"] = made.file.size_bytes
                    delivery = replace(self._store(made, storage), preview_url=preview_url)
                notes += self._not_stored(made, delivery)
                result = self._result(made, delivery, report, notes)
                # Replace the record of a video that has since been deleted from storage.
                gone = self._entry.finished.get(request.index)
                worker.journal.record_result(self._job_id, request.index, result, replacing=gone)
            worker.segments.remove(self._job_id, request.index)
        except Exception as failure:
            theirs = storage.video_url if isinstance(storage, PresignedStorage) else ""
            if self._keep(self._marked(made), Delivery(theirs, None, preview_url=preview_url), report, notes):
                worker.segments.remove(self._job_id, request.index)
            if isinstance(failure, BlockingIOError):
                raise UploadFailed("another worker is storing this video: send the job again") from failure
            raise
        return self._with_file(result, storage, made.file.path.read_bytes)

    def _only_preview(self, made: Made, report: VideoReport) -> Outcome:
        """Blocks. Recorded, with the last preview in the place of the video."""
        request = made.video.request
        with report.stage("upload"):
            preview, notes = self._previews.finished(request)
        if preview is None:
            raise UploadFailed("no preview was stored: " + ("; ".join(notes) or "none was made"))
        file = replace(made.file, size_bytes=preview.size_bytes, sha256=preview.sha256, provenance=preview.provenance)
        delivery = Delivery("", None, preview_url=preview.url)
        result = self._result(replace(made, file=file), delivery, report, notes)
        gone = self._entry.finished.get(request.index)
        self._worker.journal.record_result(self._job_id, request.index, result, replacing=gone)
        return result

    def _store(self, made: Made, storage: Storage) -> Delivery:
        request = made.video.request
        try:
            return storage.store(made.file, self._key(request.index), stop=self._late)
        except UploadFailed:
            if not inline.is_forced(request, self._worker.settings):
                raise
            return Delivery("", None)  # the file is in the answer, and nobody could fetch it from there

    def _stored_again(self, request: VideoRequest, left: Earlier, report: VideoReport) -> Outcome:
        worker, storage = self._worker, self._worker.storage_of(request)
        if not isinstance(left, Found):
            return self._with_file(left, storage)
        content = left.video.path.read_bytes() if request.index in self._in_answer else b""
        with report.lapped("upload"):
            result = worker.spool.upload(left, storage, stop=self._late)
        return self._with_file(result, storage, lambda: content)

    def _by_another_worker(self, index: int, storage: Storage) -> Outcome | None:
        """The result of a worker that made the same job and stored this video since the job was accepted here."""
        entry = self._worker.journal.entry(self._job_id)
        known = None if entry is None else entry.finished.get(index)
        if known is None or known == self._entry.finished.get(index):
            return None
        key = self._key(index)
        try:
            if not storage.holds(key + suffix_of(known), sha256=known["sha256"], stop=self._late):
                return None
        except UploadFailed:
            pass  # as for a redelivered job: the record counts
        logger.info("video %d: another worker has stored its own", index)
        return refreshed(known, key, storage)

    def _fitted(self, made: Made, report: VideoReport) -> tuple[Made, list[str]]:
        """The video with a file that fits into the answer, and what is to be said about its delivery."""
        request, file, notes = made.video.request, made.file, []
        limit = inline.before_marks(self._in_answer, made.video, self._worker.marker)
        if limit is not None and file.size_bytes > limit:
            path = file.path.with_name(f"{file.path.stem}-fitted{file.path.suffix}")
            with report.stage("encode"):
                fitted = encode_to_fit(file, limit, codec=request.output.codec, path=path, stop=self._late)
            notes.append(
                f"the file was encoded again, {file.size_bytes} bytes became {fitted.size_bytes}, to fit into the "
                "answer (INLINE_MAX_BYTES)"
            )
            made = replace(made, file=fitted)
        if inline.is_forced(request, self._worker.settings):
            notes.append(inline.NO_BUCKET)
        beside = self._beside(file, Delivery("", None))
        if beside and self._takes_video_alone(request):
            notes.append(f"{beside}: not stored, upload_url takes the video alone and no bucket is configured")
        return made, notes

    def _takes_video_alone(self, request: VideoRequest) -> bool:
        return request.output.upload_url is not None and not self._worker.settings.storage_is_remote

    def _not_stored(self, made: Made, delivery: Delivery) -> list[str]:
        """What is to be said of a poster and a ZIP that a storage of both did not take."""
        beside = self._beside(made.file, delivery)
        if not beside or self._takes_video_alone(made.video.request):
            return []
        return [f"{beside}: made and not stored, the storage did not take them"]

    @staticmethod
    def _beside(file: VideoFile, delivery: Delivery) -> str:
        """The names of what was made beside the video and has no URL."""
        made = (("thumbnail", file.poster, delivery.thumbnail_url), ("frames_zip", file.frames, delivery.frames_url))
        return ", ".join(name for name, path, url in made if path is not None and url is None)

    def _marked(self, made: Made) -> Made:
        """With its files marked, once."""
        video = made.video
        if made.file.provenance is not None:
            return made
        origin = Origin(video.spec.version, video.request.shows_sources, video.ingredients)
        return replace(made, file=self._worker.marker.mark(made.file, origin))

    def _with_file(self, result: Outcome, storage: Storage, read: Callable[[], bytes] | None = None) -> Outcome:
        """The result with its file, where that is to be in the answer; `read` instead of what the storage holds."""
        index = result["index"]
        if index not in self._in_answer:
            return result
        name = self._key(index) + suffix_of(result)
        try:
            content = storage.read(name, stop=self._late) if read is None else read()
        except (UploadFailed, Cancelled, OSError) as failure:
            logger.warning("video %d: its file is not in the answer (%s)", index, type(failure).__name__)
            content = b""
        if hashlib.sha256(content).hexdigest() == result["sha256"]:
            return answers.with_file(result, content)
        note = "video_base64: left out, the stored file could not be read: fetch video_url, or send the job again"
        return {**result, "warnings": [*result["warnings"], note]}

    def _result(self, made: Made, delivery: Delivery, report: VideoReport, notes: Sequence[str]) -> Outcome:
        return answers.video_result(
            made,
            delivery,
            job_id=self._job_id,
            timings=report.timings(),
            gpu=self._worker.engine.gpu,
            cost_usd=report.cost_usd,
            notes=notes,
        )

    def _key(self, index: int) -> str:
        return video_key(self._job_id, index, self._entry.accepted_on)

    def _keep(self, made: Made, delivery: Delivery, report: VideoReport, notes: Sequence[str]) -> bool:
        """Keep what was not stored, for the next delivery of the job or, but for the caller's store, any `tidy`.

        Whether a copy was made now.
        """
        result = self._result(made, delivery, report, notes)
        return self._worker.spool.keep(made.file, self._entry, made.video.request.index, result)

    async def _send(self, result: Outcome, previous: Previous) -> None:
        """Send the final event of a finished video, after that of the video before it."""
        if previous is not None:
            await previous
        self._progress.finished(result["index"])
        await self._channel.completed(result["index"], answers.without_file(result))
