"""An S3 server on a real socket that refuses what real servers refuse, and fails on command.

moto checks neither bodies nor headers. This one demands Content-MD5 on every put and part, checks it against the body
that arrived, keeps the headers of every request, and plays the faults that a test plans for an operation: `put`, `get`,
`head`, `create`, `part`, `complete`, `abort`.
"""

from __future__ import annotations

import base64
import hashlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

HEADER = '<?xml version="1.0" encoding="UTF-8"?>'

BUCKET = "videos-bucket"
Fault = Callable[["Handler"], bool]  # answers the request itself and returns True, or returns False


@dataclass
class Stored:
    body: bytes
    headers: dict[str, str]


@dataclass
class Double:
    """What the server holds, what it saw, and the faults that it plays, by operation."""

    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    endpoint_url: str = ""

    def environment(self, bucket: str = BUCKET) -> dict[str, str]:
        """The variables of a worker whose files go to `bucket` here."""
        return {
            "DIGITAL_OCEAN_ENDPOINT_URL": self.endpoint_url,
            "DIGITAL_OCEAN_BUCKET_NAME": bucket,
            "DIGITAL_OCEAN_BUCKET_ACCESS_KEY": "the-access-key",
            "DIGITAL_OCEAN_BUCKET_SECRET_KEY": "the-secret-key",
        }

    def only_object(self) -> bytes:
        (stored,) = self.objects.values()
        return stored.body

    def operations(self) -> list[str]:
        return [operation for operation, _ in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any
    flips = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def double(self) -> Double:
        double: Double = self.server.double
        return double

    def answer(self, status: int, body: str | bytes = "", **headers: str) -> None:
        content = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def error(self, status: int, code: str) -> None:
        self.answer(status, f"{HEADER}<Error><Code>{code}</Code></Error>", x_amz_request_id="tx-1")

    def cut(self) -> None:
        """Reset the connection, as a dying server or a broken path does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def serve(self, operation: str, play: Callable[[str, bytes], None]) -> None:
        self.double.seen.append((operation, {name.lower(): value for name, value in self.headers.items()}))
        planned = self.double.faults.get(operation, [])
        fault = planned.pop(0) if planned else self.double.always.get(operation)
        body = b""
        if not getattr(fault, "before_body", False):
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if fault is not None and fault(self):
            return
        md5 = self.headers.get("Content-MD5")
        if operation in ("put", "part") and md5 is None:
            self.error(400, "InvalidDigest")
        elif md5 is not None and base64.b64decode(md5) != hashlib.md5(body).digest():
            self.error(400, "BadDigest")
        else:
            play(urlsplit(self.path).path, body)

    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def do_PUT(self) -> None:
        if "partNumber" in self.query():
            self.serve("part", self.take_part)
        else:
            self.serve("put", self.take_object)

    def do_POST(self) -> None:
        if "uploads" in self.query():
            self.serve("create", self.create_upload)
        else:
            self.serve("complete", self.complete_upload)

    def do_DELETE(self) -> None:
        self.serve("abort", self.abort_upload)

    def do_GET(self) -> None:
        self.serve("get", self.show)

    def do_HEAD(self) -> None:
        self.serve("head", self.show)

    def take_object(self, path: str, body: bytes) -> None:
        if self.flips:
            body = bytes([body[0] ^ 1]) + body[1:]
        self.double.objects[path] = Stored(body, {name.lower(): value for name, value in self.headers.items()})
        self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def create_upload(self, path: str, body: bytes) -> None:
        upload_id = f"upload-{len(self.double.seen)}"
        self.double.uploads[upload_id] = {}
        self.double.objects[f"pending:{upload_id}"] = Stored(b"", {k.lower(): v for k, v in self.headers.items()})
        self.answer(
            200,
            f"{HEADER}<InitiateMultipartUploadResult><UploadId>{upload_id}</UploadId></InitiateMultipartUploadResult>",
        )

    def take_part(self, path: str, body: bytes) -> None:
        query = self.query()
        self.double.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        self.answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def complete_upload(self, path: str, body: bytes) -> None:
        upload_id = self.query()["uploadId"][0]
        if upload_id not in self.double.uploads:
            self.error(404, "NoSuchUpload")
            return
        parts = self.double.uploads.pop(upload_id)
        headers = self.double.objects.pop(f"pending:{upload_id}").headers
        self.double.objects[path] = Stored(b"".join(parts[number] for number in sorted(parts)), headers)
        self.answer(200, f"{HEADER}<CompleteMultipartUploadResult><ETag>x-1</ETag></CompleteMultipartUploadResult>")

    def abort_upload(self, path: str, body: bytes) -> None:
        upload_id = self.query()["uploadId"][0]
        self.double.uploads.pop(upload_id, None)
        self.double.objects.pop(f"pending:{upload_id}", None)
        self.answer(204)

    def show(self, path: str, body: bytes) -> None:
        stored = self.double.objects.get(path)
        if stored is None:
            self.answer(404)
            return
        meta = {name: value for name, value in stored.headers.items() if name.startswith("x-amz-meta-")}
        self.answer(200, stored.body, **meta)


def status(number: int, code: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.error(number, code)
        return True

    return fault


def reset(handler: Handler) -> bool:
    handler.cut()
    return True


def reset_half_way(handler: Handler) -> bool:
    """Take the first bytes of the body, then cut."""
    handler.rfile.read(1000)
    handler.cut()
    return True


reset_half_way.before_body = True  # type: ignore[attr-defined]


def pause(handler: Handler) -> bool:
    time.sleep(1.5)  # longer than the client's read timeout
    handler.close_connection = True
    return True


def say_nothing(handler: Handler) -> bool:
    """Take the request and be silent for as long as the client waits."""
    handler.rfile.read(1)
    handler.close_connection = True
    return True


def drip(handler: Handler) -> bool:
    """Send a byte of an endless header now and then."""
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    while not select.select([handler.connection], [], [], 0.2)[0]:
        handler.wfile.write(b"a")
    return True


def flip_a_byte(handler: Handler) -> bool:
    """Store other bytes than came, and answer with their ETag."""
    handler.flips = True
    return False


def lose_the_answer(handler: Handler) -> bool:
    """Do the work, then cut before the answer is sent."""
    handler.answer = lambda *_args, **_headers: handler.cut()  # type: ignore[method-assign]
    return False


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    double: Double

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a connection that was cut on purpose


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Double]:
    """A running double on a free port of 127.0.0.1; over TLS with `certificate`, a PEM file that holds its key too."""
    server = _Server(("127.0.0.1", 0), Handler)
    scheme = "http"
    if certificate is not None:
        scheme = "https"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # The handshake belongs to the thread of the connection: a client that refuses must not stop the server.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.double = Double(endpoint_url=f"{scheme}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.double
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
