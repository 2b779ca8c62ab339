"""No request is larger than RunPod would take it: a larger body is refused before it is read."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .refusal import Refused

BODY_LIMIT_BYTES = 10_000_000


class BodyLimit:
    """Refuses a larger body with 413, also one that does not say its size."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        stated = dict(scope["headers"]).get(b"content-length", b"0")
        if not stated.isdigit() or int(stated) > BODY_LIMIT_BYTES:
            return await _refuse(send)
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > BODY_LIMIT_BYTES:
                raise _TOO_LARGE
            return message

        await self._app(scope, counted, send)
        return None


_TOO_LARGE = Refused(413, "a request has 10 MB at most: put pictures behind a URL", code="too_large")


async def _refuse(send: Send) -> None:
    body = json.dumps(_TOO_LARGE.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})
