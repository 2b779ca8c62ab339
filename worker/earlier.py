"""What earlier deliveries of a job left of a video, so that it is not made again: its result, or a copy to be stored.

A result counts while its video lies in the storage: one that is gone (its owner deleted it, a lifecycle rule did) is
made again. Its URLs are made anew, because presigned ones expire long before the journal's entry does.
"""

from __future__ import annotations

import logging
from typing import Any

from worker import metrics
from worker.errors import UploadFailed
from worker.journal import Entry, Journal
from worker.spool import Found, Spool, refreshed
from worker.storage import Storage, video_key

logger = logging.getLogger(__name__)

Earlier = Found | dict[str, Any]


def find(index: int, *, entry: Entry, journal: Journal, spool: Spool, storage: Storage) -> Earlier | None:
    """What is left of video `index` of the job of `entry`; None where it must be made. Blocks; raises nothing.

    A storage that cannot be asked counts as holding what the journal says.
    """
    left = _find(index, entry, journal, spool, storage)
    metrics.cache("journal", hit=left is not None)
    return left


def _find(index: int, entry: Entry, journal: Journal, spool: Spool, storage: Storage) -> Earlier | None:
    job_id = entry.job_id
    key = video_key(job_id, index, entry.accepted_on)
    kept = spool.find(job_id=job_id, payload_digest=entry.payload_digest, index=index, key=key)
    # Read after the spool: a kept video that some worker has stored meanwhile stands in the journal by now.
    now = journal.entry(job_id)
    result = (entry if now is None else now).finished.get(index)
    if result is None:
        return kept
    try:
        if not storage.holds(key, sha256=result["sha256"]):
            logger.warning("video %d is gone from the storage", index)
            return kept
    except UploadFailed:
        logger.warning("video %d counts as stored: the storage cannot be asked", index)
    return refreshed(result, key, storage)
