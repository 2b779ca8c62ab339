"""What leaves the worker and what remembers it: storage and webhooks; the journal, spool and outbox.

    a finished video -> storage (a bucket, or a folder) -> journal: its result    -> webhook: `completed`
                           | refused                                                 | not delivered
                           v                                                         v
                        spool: the video; journal: its result without URLs        outbox: the event

- journal.py       what is known of each job, so that a job delivered again is not made again
- spool.py         videos that wait for the storage, beside the journal
- storage/         base.py (the promise), local.py, spaces*.py
- webhooks/        channel.py (a job's events), letter.py (the attempts), outbox.py, postman.py (HTTP), envelopes.py

Journal, spool and outbox are files on STATE_DIR, which several workers may share. docs/decisions/0005 says why.
"""

from worker.delivery.journal import Entry, Journal
from worker.delivery.spool import Spool
from worker.delivery.storage import Storage, open_storage, video_key
from worker.delivery.webhooks import Channel, Outbox, redeliver

__all__ = [
    "Channel",
    "Entry",
    "Journal",
    "Outbox",
    "Spool",
    "Storage",
    "open_storage",
    "redeliver",
    "video_key",
]
