"""A payload becomes a job: read, judged, and entered into the journal, with what earlier deliveries of it left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from worker import earlier
from worker.earlier import Earlier
from worker.journal import Entry
from worker.payload import Limits
from worker.request import Job, parse
from worker.services import Worker

logger = logging.getLogger(__name__)


async def accept(payload: object, job_id: str, digest: str, worker: Worker) -> tuple[Job, Entry]:
    """The job that `payload` describes and its entry in the journal, whose seeds it has.

    Raises InvalidRequest and InputBlocked.
    """
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


async def left_by_earlier_deliveries(job: Job, entry: Entry, worker: Worker) -> dict[int, Earlier]:
    """What need not be made again, by the video's index."""

    def find(index: int) -> Earlier | None:
        return earlier.find(index, entry=entry, journal=worker.journal, spool=worker.spool, storage=worker.storage)

    left = await asyncio.gather(*(asyncio.to_thread(find, video.index) for video in job.videos))
    return {video.index: found for video, found in zip(job.videos, left, strict=True) if found is not None}


def private_texts(payload: object) -> list[str]:
    """The texts of a payload that no log may hold, whatever exception they come in."""
    if not isinstance(payload, Mapping):
        return []
    videos = payload.get("job_request_params")
    requests = [payload, *(videos if isinstance(videos, list) else [])]
    texts = [r.get(name) for r in requests if isinstance(r, Mapping) for name in ("prompt", "negative_prompt")]
    return [text.strip() for text in texts if isinstance(text, str)]


def video_count(payload: object) -> int:
    """How many videos a payload asks for, whether or not it can be read."""
    videos = payload.get("job_request_params") if isinstance(payload, Mapping) else None
    return len(videos) if isinstance(videos, list) else 1
