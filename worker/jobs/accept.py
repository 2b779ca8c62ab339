"""A payload becomes a job: parsed, checked, entered into the journal, with what earlier deliveries of it left.

A recorded result is valid while its video is in the storage: one that was deleted (by its owner, by a lifecycle rule)
is made again. Its URLs are made new, because presigned ones expire long before the journal's entry does.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from worker.base import metrics
from worker.base.errors import Cancelled, UploadFailed
from worker.base.stop import Deadline, Flag
from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import Found, Spool
from worker.delivery.storage import Storage, video_key
from worker.delivery.storage.base import refreshed, suffix_of
from worker.jobs.inline import limits
from worker.jobs.services import Services
from worker.request import Job, Limits, VideoRequest
from worker.request.parse import parse

logger = logging.getLogger(__name__)

# For the questions of a redelivered job to the storage, all together.
ASKING_S = 10.0
Earlier = Found | dict[str, Any]


async def accept(payload: object, job_id: str, digest: str, worker: Services) -> tuple[Job, Entry]:
    """Parse `payload` and enter it in the journal; returns the job with the journal's seeds, and the entry.

    Raises InvalidRequest and InputBlocked.
    """
    settings = worker.settings
    allowed = Limits(settings.max_videos_per_job, settings.max_pixels, settings.max_frames, settings.max_total_frames)
    job = parse(
        payload,
        default_job_id=job_id,
        limits=allowed,
        catalogue=worker.engine.catalogue,
        check_url=worker.opener.check,
    )
    seeds = [video.seed for video in job.videos]
    entry = await asyncio.to_thread(
        worker.journal.accept, job.job_id, digest, today=datetime.now(UTC).date(), seeds=seeds
    )
    videos = tuple(replace(video, seed=seed) for video, seed in zip(job.videos, entry.seeds, strict=True))
    logger.info("accepted: %d video(s)", len(videos))
    return replace(job, videos=videos), entry


async def left_by_earlier_deliveries(job: Job, entry: Entry, worker: Services, stop: Flag) -> dict[int, Earlier]:
    """Results and stored files that need not be made again, by the video's index."""

    # One patience for all of them: a silent storage holds up each question.
    asking, inline = Deadline.after(ASKING_S, stop), limits(job.videos, worker.settings)

    def find(video: VideoRequest) -> Earlier | None:
        return find_earlier(
            video.index,
            entry=entry,
            journal=worker.journal,
            spool=worker.spool,
            storage=worker.storage_of(video),
            at_most=inline.get(video.index),
            stop=asking,
        )

    left = await asyncio.gather(*(asyncio.to_thread(find, video) for video in job.videos))
    return {video.index: found for video, found in zip(job.videos, left, strict=True) if found is not None}


def find_earlier(
    index: int,
    *,
    entry: Entry,
    journal: Journal,
    spool: Spool,
    storage: Storage,
    at_most: int | None = None,
    stop: Flag | None = None,
) -> Earlier | None:
    """What is left of video `index` of the job of `entry`; None where it must be made. Blocks; raises nothing.

    Where the storage does not respond until `stop`, the journal's record counts. `at_most` is how many bytes the file
    may have, None for any number.
    """
    left = _find(index, entry, journal, spool, storage, stop)
    result = left.result if isinstance(left, Found) else left
    if result is not None and at_most is not None and result["size_bytes"] > at_most:
        left = None  # it would not fit into the answer
    metrics.cache("journal", hit=left is not None)
    return left


def _find(
    index: int, entry: Entry, journal: Journal, spool: Spool, storage: Storage, stop: Flag | None
) -> Earlier | None:
    job_id = entry.job_id
    key = video_key(job_id, index, entry.accepted_on)
    kept = spool.find(job_id, index)
    # Read after the spool: a kept video that another worker has stored meanwhile is in the journal by now.
    now = journal.entry(job_id)
    result = (entry if now is None else now).finished.get(index)
    if result is None:
        return kept
    try:
        if not storage.holds(key + suffix_of(result), sha256=result["sha256"], stop=stop):
            logger.warning("video %d is gone from the storage", index)
            return kept
    except (UploadFailed, Cancelled):
        logger.warning("video %d counts as stored: the storage cannot be asked", index)
    return refreshed(result, key, storage)
