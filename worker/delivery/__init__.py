"""What leaves the worker and what remembers it: storage and webhooks; the journal, spool and outbox."""

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
