"""The flow of a job that trains: accept; fetch and read the data; train; samples; store, record, send.

A redelivery of a finished training returns what the journal recorded; one of a training that was cut short goes on
where its last checkpoint ended. A stop or the job's timeout delivers what is best so far; a shutdown delivers nothing,
and the next worker goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from worker.base import folders, metrics, scratch, timing
from worker.base.errors import Cancelled, InvalidRequest, UploadFailed, WorkerError
from worker.base.files import StateFolder
from worker.base.log import fields
from worker.base.sigterm import ShuttingDown
from worker.base.stop import Deadline, Stop
from worker.base.timing import Stopwatch
from worker.delivery import storage
from worker.delivery.journal import Entry
from worker.delivery.storage import Storage
from worker.delivery.storage.base import LORA_SUFFIX, VIDEO_SUFFIXES, Files, training_key
from worker.delivery.webhooks.channel import Channel
from worker.engine import device
from worker.jobs import samples, training_answer
from worker.jobs.progress import Progress
from worker.jobs.services import Services
from worker.media.marks.provenance import Origin
from worker.request import Limits
from worker.request.training import TrainingRequest, parse_training
from worker.training import Dataset, fetch_archive, read_dataset
from worker.training import plan as plans
from worker.training.plan import TrainingPlan
from worker.training.train import Trained, Watcher, train

logger = logging.getLogger(__name__)

_ASKING_S = 10.0
_INDEX = 0
Result = dict[str, Any]


class TrainingFlow:
    """One accepted training on its way; see `worker.jobs.flow` for what its parts are."""

    def __init__(
        self, worker: Services, channel: Channel, progress: Progress, stop: Stop, stopwatch: Stopwatch
    ) -> None:
        self._worker = worker
        self._channel = channel
        self._progress = progress
        self._stop = stop
        self._stopwatch = stopwatch
        self._storage = _storage_of(worker)
        self._state = StateFolder(folders.state_dir(worker.settings))

    async def answer(self, payload: Mapping[str, Any], job_id: str, digest: str) -> Result:
        """The answer of the job. Raises WorkerError for a training of which nothing can be delivered; it is
        ShuttingDown where the training is left to the next worker."""
        self._progress.stage(_INDEX, "queued")
        request, entry = await self._accepted(payload, job_id, digest)
        self._stopwatch.lap("accept")
        result = await asyncio.to_thread(self._recorded, entry)
        if result is None:
            with scratch.folder("job") as folder:
                result = await self._made(request, entry, folder)
        self._progress.finished(_INDEX)
        await self._channel.completed(_INDEX, result)
        self._report(result)
        return result

    async def _accepted(self, payload: Mapping[str, Any], job_id: str, digest: str) -> tuple[TrainingRequest, Entry]:
        settings = self._worker.settings
        job = parse_training(
            payload,
            default_job_id=job_id,
            limits=Limits(
                settings.max_videos_per_job, settings.max_pixels, settings.max_frames, settings.max_total_frames
            ),
            catalogue=self._worker.engine.catalogue,
            check_url=self._worker.opener.check,
        )
        if settings.lacks_bucket and not job.train.dry_run:
            raise InvalidRequest(
                "no bucket is configured on this worker, and the LoRAs would be lost with it: set the four "
                "DIGITAL_OCEAN_* variables",
                path="train",
            )
        today = datetime.now(UTC).date()
        entry = await asyncio.to_thread(
            self._worker.journal.accept, job.job_id, digest, today=today, seeds=[job.train.seed]
        )
        logger.info("accepted: a training of %s", job.train.model.version)
        return replace(job.train, seed=entry.seeds[0]), entry

    async def _made(self, request: TrainingRequest, entry: Entry, folder: Path) -> Result:
        planner = self._worker.engine.planner
        plan = plans.choose(request, planner.gpu, planner.host_limit_bytes)
        self._progress.stage(_INDEX, "preparing")
        dataset = await asyncio.to_thread(self._dataset, request, folder)
        self._stopwatch.lap("inputs")
        if request.dry_run:
            return self._dry(request, dataset, plan, entry)
        trained, made, notes = await self._on_gpu(request, dataset, plan, folder)
        if isinstance(self._stop.reason, ShuttingDown):
            raise self._stop.reason
        result = await asyncio.to_thread(self._stored, request, dataset, plan, entry, trained, made)
        self._stopwatch.lap("upload")
        result |= {"warnings": [*result["warnings"], *notes], "timings": self._stopwatch.read()}
        gone = entry.finished.get(_INDEX)
        record = partial(self._worker.journal.record_result, entry.job_id, _INDEX, result, replacing=gone)
        await asyncio.to_thread(record)
        return result

    def _dataset(self, request: TrainingRequest, folder: Path) -> Dataset:
        """Blocks."""
        archive = folder / "data.zip"
        opener, settings, stop = self._worker.opener, self._worker.settings, self._stop.event
        fetch_archive(request.training_data_url, archive, opener=opener, settings=settings, stop=stop)
        clips = folder / "clips"
        clips.mkdir()
        return read_dataset(archive, clips, request, stop=stop)

    async def _on_gpu(
        self, request: TrainingRequest, dataset: Dataset, plan: TrainingPlan, folder: Path
    ) -> tuple[Trained, list[samples.Sample], list[str]]:
        work = partial(self._train, request, dataset, plan, folder)
        return await asyncio.get_running_loop().run_in_executor(self._worker.gpu, copy_context().run, work)

    def _train(
        self, request: TrainingRequest, dataset: Dataset, plan: TrainingPlan, folder: Path
    ) -> tuple[Trained, list[samples.Sample], list[str]]:
        """The LoRAs, the samples, and warnings. Blocks; runs in the GPU's thread."""
        engine, stop = self._worker.engine, self._stop
        self._stopwatch.lap(timing.WAITING)
        device.reset_peak()
        watcher = _Reporting(self._progress)
        with engine.bench(request.model, stop) as bench:
            trained = train(request, dataset, bench, plan, self._state, folder, stop=stop, watcher=watcher)
        self._stopwatch.split(trained.seconds)
        if stop.requested:
            done, steps = (sum(each.learned.progress.step for each in trained.experts), training_answer.steps(request))
            note = f"train: {done} of {steps} steps were made, what is delivered is the best of them: {stop.reason}"
            return trained, [], [f"{note}; the same training under a new job_id and this seed goes on from there"]
        made: list[samples.Sample] = []
        notes = training_answer.diverged(trained.experts)
        count = max(1, len(request.sample_prompts))
        try:
            self._progress.stage(_INDEX, "sampling")
            for sample in samples.make(request, dataset, trained, engine, folder, stop):
                made.append(sample)
                self._progress.stage(_INDEX, "sampling", len(made) / count)
        except WorkerError as failure:
            notes.append(f"train.sample_prompts: {len(made)} of {count} were made: {failure}")
        self._stopwatch.lap("sample")
        return trained, made, notes

    def _stored(
        self,
        request: TrainingRequest,
        dataset: Dataset,
        plan: TrainingPlan,
        entry: Entry,
        trained: Trained,
        made: list[samples.Sample],
    ) -> Result:
        """The result, without its timings, when everything is stored. Blocks."""
        self._progress.stage(_INDEX, "uploading")
        key = training_key(entry.job_id, entry.accepted_on)
        urls = {
            each.path.name: self._storage.store_file(each.path, f"{key}/{each.path.name}") for each in trained.experts
        }
        shown = []
        for number, sample in enumerate(made):
            origin = Origin(request.model.version, composite="text_to_video" not in request.model.modes)
            shown.append({"prompt": sample.prompt, "seed": sample.seed})
            for name, video in sample.files.items():
                marked = self._worker.marker.mark(video, origin)
                shown[-1][f"{name}_url"] = self._storage.store(marked, f"{key}/{number}-{name}").video_url
        return {
            **training_answer.common(request, dataset, plan, job_id=entry.job_id, gpu=self._worker.engine.gpu),
            "loras": training_answer.pasted([training_answer.name_of(each) for each in trained.experts], urls),
            "experts": {training_answer.name_of(each): each.report() for each in trained.experts},
            "samples": shown,
            "peak_vram_bytes": device.peak_bytes(),
            "cost_usd": self._cost(self._stopwatch.worked_s()),
        }

    def _dry(self, request: TrainingRequest, dataset: Dataset, plan: TrainingPlan, entry: Entry) -> Result:
        seconds = plans.estimated_s(request, plan, self._worker.engine.planner.gpu)
        common = training_answer.common(request, dataset, plan, job_id=entry.job_id, gpu=self._worker.engine.gpu)
        limit_s = self._worker.settings.job_timeout_s
        if seconds is not None and seconds.high > limit_s:
            common["warnings"].append(f"train: JOB_TIMEOUT_S={limit_s:g} may stop it before it is done")
        return {
            **common,
            "dry_run": True,
            **({} if plan.estimated_peak_bytes is None else {"estimated_peak_bytes": plan.estimated_peak_bytes}),
            "estimated_seconds": None if seconds is None else [round(seconds.low), round(seconds.high)],
            "cost_usd": None if seconds is None else self._cost(seconds.high),
            "timings": self._stopwatch.read(),
        }

    def _cost(self, seconds: float) -> float | None:
        return timing.cost_usd(seconds, self._worker.settings.gpu_hourly_usd)

    def _recorded(self, entry: Entry) -> Result | None:
        """What an earlier delivery stored, with new URLs; None where it is not whole any more. Blocks."""
        known = entry.finished.get(_INDEX)
        if known is None:
            return None
        key, until = training_key(entry.job_id, entry.accepted_on), Deadline.after(_ASKING_S, self._stop.event)
        names = {name: f"{key}/{training_answer.stem(name)}" for name in known["experts"]}
        try:
            stored = all(
                self._storage.holds(names[name] + LORA_SUFFIX, sha256=each["sha256"], stop=until)
                for name, each in known["experts"].items()
            )
        except (UploadFailed, Cancelled):
            stored = True  # the record counts
        if not stored:
            return None
        urls = {
            f"{training_answer.stem(name)}{LORA_SUFFIX}": self._url(place, LORA_SUFFIX) for name, place in names.items()
        }
        shown = [
            {
                **sample,
                **{
                    f"{name}_url": self._url(f"{key}/{number}-{name}", VIDEO_SUFFIXES[0])
                    for name in training_answer.SAMPLES
                },
            }
            for number, sample in enumerate(known["samples"])
        ]
        return {**known, "loras": training_answer.pasted([*known["experts"]], urls), "samples": shown}

    def _url(self, key: str, suffix: str) -> str:
        return self._storage.links(key, Files(suffix)).video_url

    def _report(self, result: Result) -> None:
        total = result["timings"]["total"]
        logger.info(
            "answered: %s in %.3f s, a training of %s",
            *(result["status"], total, result["model_version"]),
            extra=fields(
                status=result["status"], seconds=total, timings=result["timings"], cost_usd=result["cost_usd"]
            ),
        )
        metrics.job(result["status"], metrics.NO_CODE, total)


class _Reporting(Watcher):
    """The trainer's watcher: progress of the job."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def preparing(self, fraction: float) -> None:
        self._progress.stage(_INDEX, "preparing", fraction)

    def training(self, done: int, steps: int, step_s: float | None) -> None:
        left_s = None if step_s is None else round((steps - done) * step_s, 1)
        self._progress.stage(_INDEX, "training", done / steps, step=done, steps=steps, eta_seconds=left_s)


def _storage_of(worker: Services) -> Storage:
    """The worker's storage, private unless STORAGE_ACL says otherwise."""
    settings = worker.settings
    if not settings.storage_is_remote or "storage_acl" in settings.model_fields_set:
        return worker.storage
    return storage.open_storage(settings.model_copy(update={"storage_acl": "private"}))
