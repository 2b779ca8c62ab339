"""What can be read of any payload, valid or not: whom to notify, how many videos, its digest, what no log may hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import get_args

from worker.request.payload import (
    WebhookEvent,
    is_job_id,
    is_url,
)


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


def payload_digest(payload: object) -> str:
    """SHA-256, in hex, of the payload as canonical JSON: the order of keys does not matter, types do."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def contact(payload: object, *, default_job_id: str) -> tuple[str, str | None, frozenset[WebhookEvent]]:
    """What can still be read of a payload that `parse` refused: whom to tell (job id, webhook URL, events)."""
    everything: frozenset[WebhookEvent] = frozenset(get_args(WebhookEvent))
    if not isinstance(payload, Mapping):
        return default_job_id, None, everything
    job_id, url = payload.get("job_id"), payload.get("webhook_url")
    given = payload.get("webhook_events")
    readable = isinstance(given, list) and all(isinstance(event, str) and event in everything for event in given)
    return (
        job_id if isinstance(job_id, str) and is_job_id(job_id) else default_job_id,
        url if isinstance(url, str) and is_url(url) else None,
        frozenset(given) if isinstance(given, list) and readable else everything,
    )
