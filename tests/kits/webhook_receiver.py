"""A webhook receiver on a real socket that misbehaves as it is told to."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


@dataclass(frozen=True)
class Received:
    """One request: its body, headers in lower case, and when it came (monotonic)."""

    body: bytes
    headers: Mapping[str, str]
    at: float

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


class Handler(BaseHTTPRequestHandler):
    """What a behaviour answers with."""

    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        receiver = self.server.receiver
        received = Received(body, {name.lower(): value for name, value in self.headers.items()}, time.monotonic())
        with receiver.lock:
            receiver.received.append(received)
            number = len(receiver.received)
            receiver.lock.notify_all()
        receiver.behaviour(self, received, number)

    def do_GET(self) -> None:
        self.do_POST()

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def reset(self) -> None:
        """Break the connection with a TCP RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def drip(self, text: bytes, pause_s: float) -> None:
        """One byte at a time, until the receiver is stopped or the sender hangs up."""
        for byte in text:
            if self.server.receiver.stopped.wait(pause_s):
                return
            self.wfile.write(bytes([byte]))
            self.wfile.flush()

    def hang(self) -> None:
        self.server.receiver.stopped.wait(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    receiver: Receiver

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the sender hung up, as it should


Behaviour = Callable[[Handler, Received, int], None]


def works(handler: Handler, received: Received, number: int) -> None:
    handler.answer(200)


class Receiver:
    """`with Receiver(behaviour) as receiver`; `port` brings a dead one back at its old address."""

    def __init__(self, behaviour: Behaviour = works, *, port: int = 0) -> None:
        self.behaviour = behaviour
        self.received: list[Received] = []
        self.lock = threading.Condition()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", port), Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [received.event for received in self.received]

    @property
    def ids(self) -> list[str]:
        return [event["event_id"] for event in self.events]

    def wait_for(self, count: int, timeout_s: float = 20.0) -> None:
        """Block until so many requests have come. Raises AssertionError after `timeout_s`."""
        with self.lock:
            assert self.lock.wait_for(lambda: len(self.received) >= count, timeout_s), f"{len(self.received)} came"

    def __enter__(self) -> Receiver:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
