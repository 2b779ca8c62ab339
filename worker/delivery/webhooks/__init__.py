"""Events to the caller's webhook: one channel a job, one HTTP attempt at a time, an outbox that outlives the worker."""

from worker.delivery.webhooks.channel import Channel
from worker.delivery.webhooks.outbox import Outbox
from worker.delivery.webhooks.postman import redeliver

__all__ = ["Channel", "Outbox", "redeliver"]
