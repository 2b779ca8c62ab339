"""The routes of `/v1/videos`. What they stand on is `request.app.state.facade`."""

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..errors import InvalidSignature, UnexpectedAnswer
from ..webhooks import verify_webhook
from .body_limit import BODY_LIMIT_BYTES
from .content import Variant
from .dialect import MODELS, fields_of_form, video_of
from .figures import Figures
from .refusal import Refused
from .videos import Videos

_OPEN = "anyone"  # the owner of every video where no keys are set
router = APIRouter()


@dataclass(frozen=True)
class Facade:
    """`keys` are the API keys of callers, who see their own videos only; without any the facade is open.

    `webhook_secret` is the worker's `WEBHOOK_SECRET`: without it no webhook is accepted. `poll_s` is how often a client
    is asked to look.
    """

    videos: Videos
    figures: Figures
    keys: Sequence[str] = ()
    webhook_secret: str | None = None
    poll_s: float = 2.0


def facade_of(request: Request) -> Facade:
    found: Facade = request.app.state.facade
    return found


async def owner_of(request: Request) -> str:
    """Who asks, by the digest of the key. Raises Refused."""
    keys = facade_of(request).keys
    if not keys:
        return _OPEN
    kind, _, sent = request.headers.get("Authorization", "").partition(" ")
    found = [key for key in keys if hmac.compare_digest(key.encode(), sent.strip().encode())]
    if kind.lower() != "bearer" or not found:
        raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")
    return hashlib.sha256(found[0].encode()).hexdigest()[:32]


This = Annotated[Facade, Depends(facade_of)]
Owner = Annotated[str, Depends(owner_of)]


@router.post("/v1/videos")
async def create(request: Request, facade: This, owner: Owner) -> Response:
    key = request.headers.get("Idempotency-Key")
    record = await facade.videos.create(owner, await _fields(request), key)
    return JSONResponse(video_of(record, facade.videos.percent(record.id)))


@router.get("/v1/videos")
async def page(
    facade: This,
    owner: Owner,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    records, has_more = facade.videos.page(owner, after=after, limit=limit, newest_first=order == "desc")
    shown = [video_of(record, facade.videos.percent(record.id)) for record in records]
    first, last = (records[0].id, records[-1].id) if records else (None, None)
    return JSONResponse({"object": "list", "data": shown, "has_more": has_more, "first_id": first, "last_id": last})


@router.get("/v1/videos/{video_id}")
async def retrieve(video_id: str, facade: This, owner: Owner) -> Response:
    record = facade.videos.get(owner, video_id)
    headers = {} if record.has_ended else {"openai-poll-after-ms": str(int(facade.poll_s * 1000))}
    return JSONResponse(video_of(record, facade.videos.percent(video_id)), headers=headers)


@router.get("/v1/videos/{video_id}/content")
async def content(video_id: str, facade: This, owner: Owner, variant: Variant = "video") -> Response:
    return FileResponse(await facade.videos.file(owner, video_id, variant))


@router.delete("/v1/videos/{video_id}")
async def delete(video_id: str, facade: This, owner: Owner) -> Response:
    await facade.videos.delete(owner, video_id)
    return JSONResponse({"id": video_id, "object": "video.deleted", "deleted": True})


@router.get("/v1/models", dependencies=[Depends(owner_of)])
async def models() -> Response:
    names = [name for name in MODELS if name.startswith("wan")]
    data = [{"id": name, "object": "model", "created": 0, "owned_by": "wan-video"} for name in names]
    return JSONResponse({"object": "list", "data": data})


@router.post("/webhooks/videogen")
async def webhook(request: Request, facade: This) -> Response:
    try:
        event = verify_webhook(await request.body(), request.headers, facade.webhook_secret or "")
    except (InvalidSignature, UnexpectedAnswer) as failure:
        raise Refused(401, failure.message, code="invalid_signature") from failure
    facade.videos.hear(event)
    return Response(status_code=200)


@router.get("/metrics", dependencies=[Depends(owner_of)])
async def metrics(facade: This) -> Response:
    facade.figures.followed.set(facade.videos.followed)
    return Response(generate_latest(facade.figures.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/health")
async def health() -> dict[str, str]:
    return {"status": "ok"}


async def _fields(request: Request) -> dict[str, Any]:
    if request.headers.get("Content-Type", "").startswith(("multipart/", "application/x-www-form-urlencoded")):
        async with request.form(max_files=8, max_fields=100, max_part_size=BODY_LIMIT_BYTES) as form:
            return await fields_of_form(form)
    try:
        found = json.loads(await request.body())
    except ValueError:
        raise Refused(400, "the body is neither JSON nor a form") from None
    if not isinstance(found, dict):
        raise Refused(400, "the body is a JSON object")
    return found
