"""A chat endpoint of OpenAI's protocol on loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

from tests.kits.loopback import Server, response

Answer = Callable[[dict[str, Any]], str]


def completion(text: str | None) -> bytes:
    """A whole response that says `text`."""
    body = {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    }
    return response(json.dumps(body).encode(), headers="Content-Type: application/json\nConnection: close")


class ChatDouble(Server):
    """Answers every question with what `answer` makes of it: the text of the assistant, or raw bytes of a response."""

    def __init__(self, answer: Callable[[dict[str, Any]], str | bytes]) -> None:
        self.questions: list[dict[str, Any]] = []
        self.heads: list[str] = []

        def serve(connection: socket.socket, request: bytes) -> None:
            head, _, body = request.partition(b"\r\n\r\n")
            self.heads.append(head.decode("latin-1"))
            self.questions.append(json.loads(body))
            said = answer(self.questions[-1])
            connection.sendall(said if isinstance(said, bytes) else completion(said))

        super().__init__(serve)

    @property
    def base_url(self) -> str:
        return self.url("/v1")
