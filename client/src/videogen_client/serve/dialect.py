"""From a request of `/v1/videos` to the worker's payload, and from a record to the `Video` of the answer."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

from starlette.datastructures import FormData, UploadFile

from ..types import SingleVideoInput
from .refusal import Refused
from .store import Record

# Every name that a model of this worker is called by, and the worker's own. Any other means the endpoint's default.
MODELS: Mapping[str, str] = {"wan2.2-a14b": "a14b", "wan2.2-5b": "5b", "a14b": "a14b", "5b": "5b"}
DEFAULT_MODEL = "wan2.2-a14b"
_OWN = get_type_hints(SingleVideoInput)
_NOT_HERE = {
    "job_id": "the facade gives each video its own: send the header Idempotency-Key",
    "num_outputs": "a request makes one video: send another request for another one",
    "webhook_url": "the operator of the facade sets it",
    "webhook_events": "the operator of the facade sets it",
}
_IGNORED = ("user", "n")
_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})")


async def fields_of_form(form: FormData) -> dict[str, Any]:
    """The fields of a multipart form, with the types that JSON would have. A file becomes a data: URI."""
    fields: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            fields[name] = await _data_uri(name, value)
            continue
        inner = re.fullmatch(r"extra_params\[(\w+)\]", name)
        if inner is not None:
            extra[inner[1]] = _typed(inner[1], value)
        elif "[" in name:
            raise Refused(
                400, f"{name}: send extra_params as one JSON object in a string", param=name.partition("[")[0]
            )
        else:
            fields[name] = _typed(name, value)
    if extra:
        fields["extra_params"] = extra
    return fields


def payload_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's payload, without `job_id`. Raises Refused for what the facade itself can refuse."""
    extra = fields.get("extra_params")
    if extra is not None and not isinstance(extra, dict):
        raise Refused(400, "extra_params is a JSON object", param="extra_params")
    payload: dict[str, Any] = {}
    for name, value in fields.items():
        if value is None or name in _IGNORED or name == "extra_params":
            continue
        payload |= _translated(name, value)
    payload |= {} if extra is None else {name: value for name, value in extra.items() if value is not None}
    for name, reason in _NOT_HERE.items():
        if name in payload:
            raise Refused(400, f"{name}: {reason}", param=name)
    if not isinstance(payload.get("prompt"), str) or not payload["prompt"].strip():
        raise Refused(400, "prompt: write what the video shows", param="prompt", code="invalid_request")
    return payload


def _translated(name: str, value: Any) -> dict[str, Any]:
    if name == "model":
        known = MODELS.get(value) if isinstance(value, str) else None
        return {} if known is None else {"model": known}
    if name == "size":
        found = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise Refused(400, 'size is WIDTHxHEIGHT in pixels, as in "832x480"', param="size")
        return {"width": int(found[1]), "height": int(found[2])}
    if name == "seconds":
        try:
            return {"duration_seconds": float(value)}
        except (TypeError, ValueError):
            raise Refused(400, 'seconds is a number, as in "5"', param="seconds") from None
    if name == "input_reference":
        return {"reference_image_url": _reference(value)}
    if name not in _OWN:
        raise Refused(400, f"{name} is no field of a video request", param=name, code="unknown_parameter")
    return {name: value}


def _reference(value: Any) -> str:
    """A URL or data: URI, by itself or as `{"image_url": ...}`."""
    found = value.get("image_url") if isinstance(value, dict) else value
    found = found.get("url") if isinstance(found, dict) else found
    if not isinstance(found, str):
        raise Refused(400, 'input_reference is a file, a URL or {"image_url": URL}', param="input_reference")
    return found


def _typed(name: str, text: str) -> Any:
    """Fields of text stay so; what else there is, is written as in JSON."""
    kinds = get_args(_OWN.get(name, str)) or (_OWN.get(name, str),)
    is_text = any(kind is str or (get_args(kind) and isinstance(get_args(kind)[0], str)) for kind in kinds)
    if is_text and name != "extra_params":
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise Refused(400, f"{name}: {text[:80]!r} is not JSON", param=name) from None


async def _data_uri(name: str, file: UploadFile) -> str:
    kind = file.content_type or "application/octet-stream"
    if name == "input_reference" and kind.startswith(("video/", "audio/")):
        raise Refused(400, "input_reference is a picture; a video goes by URL into reference_video_url", param=name)
    return f"data:{kind};base64,{base64.b64encode(await file.read()).decode('ascii')}"


Status = Literal["queued", "in_progress", "completed", "failed"]


def video_of(record: Record, progress: int = 0) -> dict[str, Any]:
    """OpenAI's `Video`, and of this worker `seed`, `warnings`, `cost_usd` and `preview_url`.

    `size` and `seconds` are null as long as the worker chooses them.
    """
    return {
        "id": record.id,
        "object": "video",
        "model": record.model,
        "status": record.status,
        "progress": 100 if record.status == "completed" else min(progress, 99),
        "created_at": record.created_at,
        "completed_at": record.completed_at,
        "expires_at": None,
        "prompt": record.prompt,
        "size": record.size,
        "seconds": record.seconds,
        "error": record.error,
        "remixed_from_video_id": None,
        **record.shown,
    }


def asked(payload: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """`size` and `seconds` as far as the request says them."""
    width, height, seconds = (payload.get(name) for name in ("width", "height", "duration_seconds"))
    size = None if width is None or height is None else f"{width}x{height}"
    return size, None if seconds is None else f"{seconds:g}"
