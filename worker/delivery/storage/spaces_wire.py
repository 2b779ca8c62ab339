"""How boto3's requests travel: each on a connection of its own, under the wall clock of the upload that it belongs to.

boto3 bounds the silence between two bytes, and nothing else: a server that sends a byte of its header now and then
holds an upload for ever. So what boto3 has signed is sent by `worker.net.exchange`, and boto3 reads the response.
"""

from __future__ import annotations

import functools
import io
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import certifi
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import HTTPClientError, SSLError

from worker.base.errors import UploadFailed
from worker.net import exchange

T = TypeVar("T")
TOO_LONG = "the storage took too long over the upload: send the job again later"
# A request outside of any upload: those of the doctor.
_REQUEST_S = 300.0
_CLOCK: ContextVar[exchange.Clock | None] = ContextVar("storage_clock", default=None)


@contextmanager
def under(clock: exchange.Clock) -> Iterator[None]:
    """Every request inside ends with `clock`: UploadFailed at its end, Cancelled on its stop."""
    before = _CLOCK.set(clock)
    try:
        yield
    finally:
        _CLOCK.reset(before)


def bounded(clock: exchange.Clock, work: Callable[[], T]) -> T:
    """Do `work`, whose requests are those of boto3, until `clock` ends: boto3 sleeps between its attempts.

    Raises UploadFailed at the end of the clock, Cancelled on its stop, and what `work` raises.
    """

    def requests() -> T:
        with under(clock):
            return work()

    try:
        return exchange.watched(requests, clock)
    except exchange.Unanswered as failure:
        raise UploadFailed(TOO_LONG) from failure


class Wire:
    """Sends what a client has signed: a handler of botocore's `before-send`, whose result takes the place of its own.

    `ca_bundle` is a PEM file of the authorities to trust instead of certifi's.
    """

    def __init__(self, *, connect_s: float, silence_s: float, ca_bundle: Path | None) -> None:
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._ca_bundle = ca_bundle

    def __call__(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        clock = _CLOCK.get() or exchange.Clock.start(_REQUEST_S, None)
        parts = urlsplit(request.url)
        host, port = str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with exchange.exchange(
                functools.partial(self._connect, host, port, secure=parts.scheme == "https"),
                method=request.method,
                path=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
                headers={"Host": parts.netloc, **{name: _text(value) for name, value in request.headers.items()}},
                body=cast("bytes | None", request.body),
                clock=clock,
                connect_s=self._connect_s,
                silence_s=self._silence_s,
            ) as response:
                body = b"".join(map(bytes, exchange.body_of(response)))
                return AWSResponse(request.url, response.status, dict(response.getheaders()), _Body(body))  # type: ignore[arg-type]
        except exchange.Unanswered as failure:
            if clock.is_over():  # boto3 would try again
                raise UploadFailed(TOO_LONG) from failure
            if isinstance(failure.__cause__, ssl.SSLError):
                raise SSLError(endpoint_url=parts.netloc, error=failure.__cause__) from failure
            raise HTTPClientError(error=failure) from failure

    def _connect(self, host: str, port: int, *, secure: bool) -> socket.socket:
        plain = socket.create_connection((host, port), timeout=self._connect_s)
        if not secure:
            return plain
        try:
            return self._tls.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise

    @functools.cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trusts nothing that the environment names."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self._ca_bundle or certifi.where())
        return context


class _Body(io.BytesIO):
    """A body that was read, as botocore reads one."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
