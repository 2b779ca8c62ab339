"""Raw servers on loopback that answer byte by byte, for tests of what a well-behaved HTTP server would never send."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import HTTPServer
from types import TracebackType

from worker.net.gate import Resolver

Serve = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def serving(server: HTTPServer) -> Iterator[str]:
    """`server`, which listens on 127.0.0.1, answers in a thread until the end of the block; yields its address."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server:
    """Serves every connection in a thread of its own: reads one request, then calls `serve` with the socket and it."""

    def __init__(self, serve: Serve, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._tls = tls
        self._closing = threading.Event()
        self._listener = _listener(host, 0)
        self._listener.settimeout(0.01)
        self._threads: list[threading.Thread] = []
        self.host = host
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.sent_bytes = 0

    def url(self, path: str = "/") -> str:
        return f"http://{self.host}:{self.port}{path}"

    def __enter__(self) -> Server:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                self._start(self._talk, connection)

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            stack.enter_context(contextlib.suppress(OSError))
            connection.settimeout(10)
            if self._tls is not None:
                connection = stack.enter_context(self._tls.wrap_socket(connection, server_side=True))
            request = _request_of(connection)
            self.requests.append(request)
            self._serve(connection, request)

    def drip(self, connection: socket.socket, pieces: Iterator[bytes], every_s: float) -> None:
        """Send `pieces` with a pause between, until the client or the test is gone."""
        for piece in pieces:
            connection.sendall(piece)
            self.sent_bytes += len(piece)
            if self._closing.wait(every_s):
                return

    def hold(self) -> None:
        """Say nothing until the test is over."""
        self._closing.wait(30)


def _request_of(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        received = connection.recv(65_536)
        if not received:
            return request
        request += received
    length = re.search(rb"content-length: (\d+)", request.lower())
    wanted = request.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(request) < wanted and (received := connection.recv(65_536)):
        request += received
    return request


def response(body: bytes = b"", *, status: str = "200 OK", headers: str = "", length: bool = True) -> bytes:
    """A whole answer. `headers` are lines without their ends, separated by a newline."""
    lines = [f"HTTP/1.1 {status}", *headers.splitlines()]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def answering(*parts: bytes) -> Serve:
    """A `serve` that sends `parts` and closes."""

    def serve(connection: socket.socket, _request: bytes) -> None:
        for part in parts:
            connection.sendall(part)

    return serve


def redirecting_to(location: str, status: str = "302 Found") -> Server:
    return Server(answering(response(status=status, headers=f"Location: {location}")))


@contextlib.contextmanager
def untouched(*hosts: str, port: int = 0) -> Iterator[int]:
    """A port on which every one of `hosts` listens; fails the test if anybody connects to one of them."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(_listener(hosts[0], port))
        port = first.getsockname()[1]
        listeners = [first, *(stack.enter_context(_listener(host, port)) for host in hosts[1:])]
        yield port
        # A loopback connection waits in the backlog before connect() returns: no waiting is needed here.
        touched, _, _ = select.select(listeners, [], [], 0)
        assert not touched, f"connected to {[listener.getsockname()[0] for listener in touched]}"


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def has_ipv6() -> bool:
    try:
        with _listener("::1", 0):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def takes_at_most(limit_s: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took_s = time.monotonic() - began
    assert took_s <= limit_s, f"took {took_s:.2f} s of {limit_s} s"


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """For what nothing reports: looks every few milliseconds. Fails the test after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.01)


def resolver_to(address: str) -> Resolver:
    """What stands in for socket.getaddrinfo: every name is at `address`."""

    def resolve(_host: str, port: int, *_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    return resolve
