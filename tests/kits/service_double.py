"""A hosted service on loopback, which speaks its protocol to the official SDK, and counts what it makes.

    with FalDouble() as fal:
        fal.plan.append(Order(outcome="hang"))
        fal.submit_faults.append("cut_after")

A job goes its way by the clock, whether anybody looks or not: half of `seconds` in the queue, half running. `plan` is
how the next jobs go; `submit_faults` and `read_faults` what the next requests get instead: an HTTP status, "cut" (no
job is made, the connection breaks), "cut_after" (carried out, the answer is lost), "late" (carried out, the answer is
sent after `late_s`). `most_looks` is how many questions there were at one time. With `closes_idle` a connection that
has served a request is closed as a submission comes on it.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Literal, Self
from urllib.parse import parse_qsl

Fault = int | Literal["cut", "cut_after", "late"]
Reply = tuple[int, Any]
NOT_FOUND: Reply = (404, {"detail": "not found"})


@dataclass(frozen=True)
class Order:
    """`obeys` a cancel: always, only while it waits, or never."""

    outcome: Literal["completed", "failed", "refused", "hang"] = "completed"
    seconds: float = 0.02
    obeys: Literal["always", "queued", "never"] = "always"


@dataclass
class FakeJob:
    id: str
    fields: dict[str, Any]
    order: Order
    begun_at: float = field(default_factory=time.time)
    cancelled: bool = False

    @property
    def state(self) -> str:
        """queued, running, completed, failed, refused or cancelled."""
        if self.cancelled:
            return "cancelled"
        age_s = time.time() - self.begun_at
        if age_s < self.order.seconds / 2:
            return "queued"
        return "running" if age_s < self.order.seconds or self.order.outcome == "hang" else self.order.outcome

    def cancel(self) -> None:
        state = self.state
        obeyed = {"always": ("queued", "running"), "queued": ("queued",), "never": ()}
        if state in obeyed[self.order.obeys]:
            self.cancelled = True


class ServiceDouble:
    """Base of the doubles. `default` is the order of a job without a plan."""

    key: ClassVar[str] = "the-key-of-the-account"

    def __init__(self, default: Order | None = None) -> None:
        self.default = Order() if default is None else default
        self.plan: list[Order] = []
        self.submit_faults: list[Fault | None] = []
        self.read_faults: list[Fault | None] = []
        self.jobs: dict[str, FakeJob] = {}
        self.video = b"a video"
        self.late_s = 0.5
        self.closes_idle = False
        self.requests = 0
        self.looks = 0  # that are under way
        self.most_looks = 0
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.double = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def base_url(self) -> str:
        return self.url

    def made(self, prompt: str) -> int:
        """How many videos it has made of a prompt, and bills."""
        return sum(each.fields["prompt"] == prompt and each.state == "completed" for each in list(self.jobs.values()))

    def new_job(self, fields: dict[str, Any]) -> FakeJob:
        job = FakeJob(uuid.uuid4().hex, fields, self.plan.pop(0) if self.plan else self.default)
        self.jobs[job.id] = job
        return job

    def file_url(self, job: FakeJob) -> str:
        return f"{self.url}/files/{job.id}.mp4"

    def is_submission(self, method: str, path: str) -> bool:
        return method == "POST" and not path.endswith("/cancel")

    def answer(self, method: str, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        raise NotImplementedError

    def authorized(self, headers: dict[str, str]) -> bool:
        return headers.get("authorization") in (f"Bearer {self.key}", f"Key {self.key}")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    double: ServiceDouble

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a connection that was cut on purpose


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    has_served = False

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        double = self.server.double
        path = self.path.partition("?")[0]
        body = self._body()
        if double.closes_idle and self.has_served and double.is_submission(self.command, path):
            self._cut()
            return
        self.has_served = True
        if path.startswith("/files/") or path.endswith("/content"):
            self._send(200, double.video)
            return
        is_look = not double.is_submission(self.command, path)
        with double.lock:
            double.looks += is_look
            double.most_looks = max(double.most_looks, double.looks)
        try:
            self._answer(path, body, double.read_faults if is_look else double.submit_faults)
        finally:
            with double.lock:
                double.looks -= is_look

    def _answer(self, path: str, body: dict[str, Any], faults: list[Fault | None]) -> None:
        double = self.server.double
        headers = {name.lower(): value for name, value in self.headers.items()}
        with double.lock:
            double.requests += 1
            fault = faults.pop(0) if faults else None
            reply: Reply = (401, {})
            if isinstance(fault, int):
                reply = (fault, {"detail": f"planned {fault}"})
            elif fault != "cut" and double.authorized(headers):
                reply = double.answer(self.command, path, body, headers)
        if fault == "late":
            time.sleep(double.late_s)
        if fault in ("cut", "cut_after"):
            self._cut()
            return
        status, content = reply
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        self._send(status, content)

    def _cut(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _body(self) -> dict[str, Any]:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        if len(raw) < length:
            raise ConnectionError("the client stopped before the end of its request")
        if "multipart" in self.headers.get("Content-Type", ""):
            parts = re.findall(rb'name="([^"]+)"\r\n\r\n(.*?)\r\n--', raw, re.DOTALL)
            return {name.decode(): value.decode() for name, value in parts}
        if "urlencoded" in self.headers.get("Content-Type", ""):
            return dict(parse_qsl(raw.decode()))
        read = json.loads(raw) if raw else {}
        return read if isinstance(read, dict) else {}

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass
