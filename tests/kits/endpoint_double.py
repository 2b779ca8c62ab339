"""RunPod's REST API of an endpoint on loopback, for RunPod's own SDK as a client, and a place from which to download.

    with EndpointDouble() as endpoint:
        endpoint.plays(in_queue(), in_progress(42), completed(answer))
        monkeypatch.setattr(runpod, "endpoint_url_base", endpoint.url)

Instead of playing a script it can give the jobs to a `Platform`, where a real worker takes them. Requests without the
right key are refused with 401, those for another endpoint with 404, as RunPod does. `refuse` holds what the next
requests of a verb (`run`, `status`, `cancel`) are answered instead: a status, or None to cut the connection. `lose` is
how many of the next requests of a verb are carried out, and their answers lost. `files`
are served under `/files/`, with ranges; `file_faults` says what the next requests for one get instead: ("status", 503),
("cut", 1000) for a line that breaks after so many bytes, or ("wrong", 0) for other bytes.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.kits.platform_double import Platform

API_KEY = "rpa_a-key-of-the-account"
ENDPOINT_ID = "abc123"
State = dict[str, Any]


def in_queue() -> State:
    return {"status": "IN_QUEUE"}


def in_progress(percent: int | None = None, status: str = "generating") -> State:
    """A running job; RunPod shows the last progress update as its output."""
    update = {} if percent is None else {"output": {"progress": percent, "status": status, "index": 0}}
    return {"status": "IN_PROGRESS", "workerId": "w-1", "delayTime": 120, **update}


def completed(output: object) -> State:
    return {"status": "COMPLETED", "output": output, "executionTime": 1000}


def failed(error: str, output: object = None) -> State:
    return {"status": "FAILED", "error": error, **({} if output is None else {"output": output})}


@dataclass(frozen=True)
class Seen:
    """A request as it came in. `body` is None where there was none."""

    verb: str
    job_id: str | None
    headers: dict[str, str]
    body: Any


@dataclass
class EndpointDouble:
    platform: Platform | None = None
    refuse: dict[str, list[int | None]] = field(default_factory=dict)
    lose: dict[str, int] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    file_faults: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    on_status: Callable[[int], None] = lambda _count: None
    url: str = ""

    def __post_init__(self) -> None:
        self._script: list[State] = []
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def plays(self, *states: State) -> None:
        """What the next questions for the state of a job are answered, one after the other; the last one stays."""
        self._script = list(states)

    def requests(self, verb: str) -> list[Seen]:
        return [each for each in self.seen if each.verb == verb]

    def file_url(self, name: str) -> str:
        return f"{self.url.removesuffix('/v2')}/files/{name}"

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.double = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v2"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def run(self, payload: object) -> State:
        job_id = f"{uuid.uuid4()}-u1"
        if self.platform is not None:
            self.platform.submit(payload, job_id)
        return {"id": job_id, "status": "IN_QUEUE"}

    def carry_out(self, verb: str, job_id: str | None, body: Any) -> State | None:
        """None for a job that the endpoint does not know."""
        if verb == "run":
            return self.run(body["input"])
        assert job_id is not None
        return self.status(job_id) if verb == "status" else self.cancel(job_id)

    def status(self, job_id: str) -> State | None:
        self.on_status(len(self.requests("status")))
        if self.platform is None:
            state = self._script.pop(0) if len(self._script) > 1 else self._script[0]
            return {"id": job_id, **state}
        return self._of_platform(job_id, self.platform)

    def _of_platform(self, job_id: str, platform: Platform) -> State:
        results = platform.results.get(job_id, [])
        if results:
            kind = "FAILED" if "error" in results[0] else "COMPLETED"
            return {"id": job_id, "status": kind, **results[0]}
        progress = platform.progress.get(job_id, [])
        if progress:
            return {"id": job_id, "status": "IN_PROGRESS", "output": progress[-1]}
        return {"id": job_id, "status": "IN_PROGRESS" if job_id in platform.taken else "IN_QUEUE"}

    def cancel(self, job_id: str) -> State:
        if self.platform is not None:
            self.platform.stop(job_id)
        return {"id": job_id, "status": "CANCELLED"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    double: EndpointDouble

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a connection that was cut on purpose


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        if self.path.startswith("/files/"):
            self._file(self.path.removeprefix("/files/"))
        else:
            self._api()

    def do_POST(self) -> None:
        self._api()

    def _api(self) -> None:
        double = self.server.double
        _, _, endpoint_id, verb, *rest = self.path.split("/")
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        job_id = rest[0] if rest else None
        double.seen.append(Seen(verb, job_id, {k.lower(): v for k, v in self.headers.items()}, body))
        planned = double.refuse.get(verb, [])
        if planned:
            status = planned.pop(0)
            if status is None:
                self._cut()
            else:
                self._answer(status, {"error": f"planned {status}"})
        elif self.headers.get("Authorization") != f"Bearer {API_KEY}":
            self._answer(401, {})
        elif endpoint_id != ENDPOINT_ID:
            self._answer(404, {"title": "Not Found"})
        else:
            found = double.carry_out(verb, job_id, body)
            if double.lose.get(verb, 0) > 0:
                double.lose[verb] -= 1
                self._cut()
            else:
                self._answer(404 if found is None else 200, {} if found is None else found)

    def _file(self, name: str) -> None:
        double = self.server.double
        double.seen.append(Seen("file", name, {k.lower(): v for k, v in self.headers.items()}, None))
        faults = double.file_faults.get(name, [])
        kind, number = faults.pop(0) if faults else ("", 0)
        content = double.files.get(name)
        if kind == "status" or content is None:
            self._answer(number or 404, {})
            return
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        if start and start >= len(content):
            self._answer(416, {})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if kind == "wrong":
            content = bytes(255 - byte for byte in content)
        if kind == "cut":
            self.wfile.write(content[start : start + number])
            self.close_connection = True
        else:
            self.wfile.write(content[start:])

    def _cut(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def _answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
