"""One HTTP exchange on a socket that somebody else vetted and opened, under one clock.

`exchange` bounds everything: opening the socket (name lookup and TLS handshake included), sending, waiting for the
header and reading the body all end at the clock's end, to within `POLL_S`, however slowly the other side sends. A
set stop event ends them as promptly, with `Cancelled`. Every failure of the network, of TLS or of HTTP is raised as
`Unanswered`, whose reason names no host and no address.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, TypeVar

from worker.base.errors import Cancelled
from worker.base.stop import Flag

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

POLL_S = 0.1
_READ_SIZE = 65_536
T = TypeVar("T")


class Unanswered(Exception):
    """The other side did not give a usable answer; `reason` is short and free of hosts."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Clock:
    """The wall clock of one request, over all its redirects. `ends_at` is on the monotonic clock."""

    total_s: float
    ends_at: float
    stop: Flag | None

    @classmethod
    def start(cls, total_s: float, stop: Flag | None) -> Clock:
        return cls(total_s, time.monotonic() + total_s, stop)

    def is_over(self) -> bool:
        return time.monotonic() >= self.ends_at

    def wait_s(self) -> float:
        """How long one blocking call may take. Raises Unanswered at the end of the clock, Cancelled on a stop."""
        if self.stop is not None and self.stop.is_set():
            raise Cancelled
        left_s = self.ends_at - time.monotonic()
        if left_s <= 0:
            raise Unanswered(f"did not finish within {self.total_s:g} s")
        return min(left_s, POLL_S)


class _Reader(io.RawIOBase):
    """The receiving half of a socket: every read obeys the clock and the limit on silence."""

    def __init__(self, sock: socket.socket, clock: Clock, silence_s: float) -> None:
        self._sock = sock
        self._clock = clock
        self._silence_s = silence_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        silent_until = time.monotonic() + self._silence_s
        while True:
            self._sock.settimeout(self._clock.wait_s())
            try:
                return self._sock.recv_into(memoryview(buffer))
            except TimeoutError:
                if time.monotonic() >= silent_until:
                    raise Unanswered(f"sent nothing for {self._silence_s:g} s") from None


class _TimedSocket:
    """As much of a socket as http.client uses. `exchange` closes the real one: `close` here leaves it open."""

    def __init__(self, sock: socket.socket, clock: Clock, silence_s: float) -> None:
        self._sock = sock
        self._clock = clock
        self._silence_s = silence_s

    def sendall(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            self._sock.settimeout(self._clock.wait_s())
            try:
                rest = rest[self._sock.send(rest) :]
            except TimeoutError:
                continue

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._sock, self._clock, self._silence_s), _READ_SIZE)

    def close(self) -> None:
        pass


@contextmanager
def exchange(
    open_socket: Callable[[], socket.socket],
    *,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes | IO[bytes] | None,
    clock: Clock,
    connect_s: float,
    silence_s: float,
) -> Iterator[http.client.HTTPResponse]:
    """Send one request, yield its response with the header read, close everything afterwards.

    `headers` hold `Host`, and `Content-Length` where the body is a file. A server that answers before it has read the
    body, and hangs up, is heard all the same. What `open_socket` raises that is not of the network is raised as it is.
    """
    with _translated():
        sock = _dial(open_socket, clock, connect_s)
    try:
        connection = http.client.HTTPConnection("unused")
        connection.auto_open = 0
        connection.sock = _TimedSocket(sock, clock, silence_s)
        with _translated():
            with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered first
                connection.request(method, path, body=body, headers={**headers, "Connection": "close"})
            response = connection.getresponse()
        with response:
            yield response
    finally:
        sock.close()


def body_of(response: http.client.HTTPResponse) -> Iterator[memoryview]:
    """The body in pieces of at most 64 KB, each valid until the next; Unanswered if the connection ends too early.

    `readinto` and not `read`: a chunk that declares the size -1 makes `read` swallow the whole stream.
    """
    piece = memoryview(bytearray(_READ_SIZE))
    while True:
        with _translated():
            count = response.readinto(piece)
        if count == 0:
            break
        yield piece[:count]
    if response.length:
        raise Unanswered("closed the connection before the whole file had arrived")


def watched(work: Callable[[], T], clock: Clock) -> T:
    """What `work` returns or raises; Unanswered at the end of the clock and Cancelled on a stop, to within `POLL_S`.

    It runs in a thread of its own, which is left behind then: for what blocks in somebody else's code.
    """
    future = _in_thread(work)
    while not future.done():
        futures.wait([future], timeout=clock.wait_s())
    return future.result()


def _dial(open_socket: Callable[[], socket.socket], clock: Clock, connect_s: float) -> socket.socket:
    """Run `open_socket` for at most `connect_s`.

    In a thread of its own: the platform's name lookup has no time limit and cannot be interrupted. A socket that is
    opened too late is closed.
    """
    opened = _in_thread(open_socket, too_late=socket.socket.close)
    connect_until = time.monotonic() + connect_s
    try:
        while not opened.done():
            futures.wait([opened], timeout=min(clock.wait_s(), max(connect_until - time.monotonic(), 0)))
            if not opened.done() and time.monotonic() >= connect_until:
                raise Unanswered(f"did not accept a connection within {connect_s:g} s")
    except BaseException:
        if not opened.cancel() and opened.exception() is None:
            opened.result().close()
        raise
    return opened.result()


def _in_thread(work: Callable[[], T], too_late: Callable[[T], object] = lambda _: None) -> futures.Future[T]:
    """Start `work`; `too_late` is called with its result where the future was cancelled meanwhile."""
    future: futures.Future[T] = futures.Future()
    context = copy_context()

    def run() -> None:
        try:
            result = context.run(work)
        except BaseException as failure:  # noqa: BLE001 - the thread that waits raises it
            with suppress(futures.InvalidStateError):
                future.set_exception(failure)
            return
        try:
            future.set_result(result)
        except futures.InvalidStateError:
            too_late(result)

    threading.Thread(target=run, name="exchange", daemon=True).start()
    return future


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ssl.SSLCertVerificationError as failure:
        raise Unanswered("has a certificate that could not be verified") from failure
    except ssl.SSLError as failure:
        raise Unanswered("failed in the TLS handshake or broke the TLS connection") from failure
    except (socket.gaierror, UnicodeError) as failure:
        raise Unanswered("has a host name that could not be resolved") from failure
    except TimeoutError as failure:
        raise Unanswered("did not accept a connection in time") from failure
    except http.client.IncompleteRead as failure:
        raise Unanswered("closed the connection before the whole file had arrived") from failure
    except http.client.HTTPException as failure:
        raise Unanswered("did not answer in HTTP") from failure
    except OSError as failure:
        raise Unanswered("refused or broke the connection") from failure
