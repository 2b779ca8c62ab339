"""What can be read of any payload, valid or not: whom to notify, how many videos, its digest, what no log may hold."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from worker.request.names import MAX_FIELDS
from worker.request.payload import MAX_OUTPUTS, WebhookEvent
from worker.request.texts import is_job_id, is_url

EVERY_EVENT: frozenset[WebhookEvent] = frozenset(get_args(WebhookEvent))


# The objects of a payload that `parse` reads.
_LORAS: Mapping[str, Any] = {"loras": {}}
_VIDEO: Mapping[str, Any] = {"segments": _LORAS, **_LORAS}
_TRAIN: Mapping[str, Any] = {"number_of_steps": {}, "learning_rate": {}}
_OBJECTS: Mapping[str, Any] = {"job_request_params": _VIDEO, "train": _TRAIN, **_VIDEO}


@dataclass(frozen=True, slots=True)
class Contact:
    """The lenient reading of a payload: what `parse` would refuse has the default of its field here.

    `video_count` is how many videos the payload asks for, 1 for a training; `private_texts` are its prompts, and the
    trigger phrase of a training. `digest` is that of `payload_digest`, None for a payload that is nested too deep to be
    written as JSON.
    """

    job_id: str
    webhook_url: str | None
    events: frozenset[WebhookEvent]
    video_count: int
    private_texts: tuple[str, ...]
    digest: str | None


def contact(payload: object, *, default_job_id: str) -> Contact:
    """Read whatever can be read of `payload`. Never raises."""
    try:
        digest = payload_digest(_cut(payload, _OBJECTS))
    except (RecursionError, TypeError, ValueError):
        digest = None
    fields = payload if isinstance(payload, Mapping) else {}
    job_id, url, events = fields.get("job_id"), fields.get("webhook_url"), fields.get("webhook_events")
    videos = fields.get("job_request_params")
    listed = videos if isinstance(videos, list) else None
    requests = [each for each in (fields, *(listed or ())) if isinstance(each, Mapping)]
    requests += [segment for each in requests for segment in _segments(each)]
    texts = [each.get(name) for each in requests for name in ("prompt", "negative_prompt")]
    train = fields.get("train")
    if isinstance(train, Mapping):
        samples = train.get("sample_prompts")
        texts += [train.get("trigger_phrase"), *(samples if isinstance(samples, list) else ())]
    readable = isinstance(events, list) and all(isinstance(event, str) and event in EVERY_EVENT for event in events)
    return Contact(
        job_id=job_id if isinstance(job_id, str) and is_job_id(job_id) else default_job_id,
        webhook_url=url if isinstance(url, str) and is_url(url) else None,
        events=frozenset(events) if isinstance(events, list) and readable else EVERY_EVENT,
        video_count=1 if train is not None else sum(map(_outputs, [fields] if listed is None else listed)),
        private_texts=tuple(text.strip() for text in texts if isinstance(text, str)),
        digest=digest,
    )


def _cut(value: object, inside: Mapping[str, Any]) -> object:
    """`value` with MAX_FIELDS fields in each object at most: `parse` refuses more, and they are not worth the work."""
    if isinstance(value, list):
        return [_cut(each, inside) if isinstance(each, Mapping) else each for each in value]
    if not isinstance(value, Mapping):
        return value
    few = dict(itertools.islice(value.items(), MAX_FIELDS))
    return {**few, **{name: _cut(few[name], deeper) for name, deeper in inside.items() if name in few}}


def _segments(request: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sent = request.get("segments")
    return [each for each in sent if isinstance(each, Mapping)] if isinstance(sent, list) else []


def _outputs(request: object) -> int:
    """How many videos a video request asks for, as far as that can be read: 1 or more."""
    count = request.get("num_outputs") if isinstance(request, Mapping) else None
    return next((most for most in range(2, MAX_OUTPUTS + 1) if count == most), 1)


def payload_digest(payload: object) -> str:
    """SHA-256, in hex, of the payload as canonical JSON: the order of keys does not matter, types do.

    The query of an `upload_url` does not count: a job that is sent again has an address that was signed again.

    Raises RecursionError, TypeError and ValueError for what JSON of a sane depth cannot hold.
    """
    text = json.dumps(_unsigned(payload), sort_keys=True, separators=(",", ":"), default=repr)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _unsigned(payload: object) -> object:
    if not isinstance(payload, Mapping):
        return payload
    plain = dict(payload)
    if isinstance(videos := payload.get("job_request_params"), list):
        plain["job_request_params"] = [_unsigned(each) for each in videos]
    if isinstance(url := payload.get("upload_url"), str):
        plain["upload_url"] = url.partition("?")[0]
    return plain
