"""What a webhook carries: its envelopes, ids, bytes and headers. Pure functions.

Source of the shapes: section 3 of the public contract; of the signature: Standard Webhooks 1.0.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from standardwebhooks import Webhook

from worker.base.version import VERSION
from worker.delivery.webhooks.progress_sender import ProgressEvent

USER_AGENT = f"videogen-runpod/{VERSION}"


def final_event_id(job_id: str, payload_digest: str, index: int | None, kind: Literal["completed", "failed"]) -> str:
    """The id of a final event: the same on every attempt and on every redelivery of the job."""
    parts = json.dumps([job_id, payload_digest, index, kind])
    return "evt_" + hashlib.sha256(parts.encode("ascii")).hexdigest()[:32]


def progress_event_id() -> str:
    """An id that no other event has: a progress event is sent once."""
    return "evt_" + uuid.uuid4().hex


def completed(
    result: Mapping[str, Any], *, event_id: str, timestamp: datetime, index: int, total: int
) -> dict[str, Any]:
    """The envelope of a delivered video or of a training; `result` is the contract's."""
    return {
        "status": True,
        "code": 200,
        "message": "LoRA Trained!" if "dataset" in result else "Video Generated!",
        "data": dict(result),
        "type": "completed",
        **_common(event_id, timestamp, index, total),
    }


def failed(
    failure: Mapping[str, Any],
    *,
    http_code: int,
    message: str,
    event_id: str,
    timestamp: datetime,
    index: int | None,
    total: int,
) -> dict[str, Any]:
    """The envelope of a video that failed or, with `index` None, of a job that could not start."""
    return {
        "status": False,
        "code": http_code,
        "message": message,
        "data": dict(failure),
        "type": "failed",
        **_common(event_id, timestamp, index, total),
    }


def progress(event: ProgressEvent, *, job_id: str, event_id: str, timestamp: datetime, total: int) -> dict[str, Any]:
    return {
        "type": "progress",
        "job_id": job_id,
        "progress": event.progress,
        "status": event.status,
        **_common(event_id, timestamp, event.index, total),
        **_known(
            step=event.step,
            steps=event.steps,
            eta_seconds=event.eta_seconds,
            preview_url=event.preview_url,
            preview_step=event.preview_step,
        ),
    }


def _known(**values: object) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _common(event_id: str, timestamp: datetime, index: int | None, total: int) -> dict[str, Any]:
    moment = timestamp.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"event_id": event_id, "timestamp": moment, "index": index, "total": total}


def serialised(envelope: Mapping[str, Any]) -> str:
    """The body, made once: what is signed is what is sent. Raises ValueError or TypeError where it is no JSON (NaN)."""
    text = json.dumps(envelope, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return json.dumps(envelope, allow_nan=False, separators=(",", ":"))
    return text


def headers(body: str, *, event_id: str, now: datetime, secrets: Sequence[str]) -> dict[str, str]:
    """The headers of one attempt at the time `now` (aware); with secrets, one signature by each."""
    plain = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
    if not secrets:
        return plain
    moment = now.astimezone(UTC)  # the library takes any time for UTC
    return {
        **plain,
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(event_id, moment, body) for secret in secrets),
    }
