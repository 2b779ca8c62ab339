"""The one guarded way to open a URL that came with a request.

Every URL (image, video, LoRA, webhook, upload) goes through `Opener`: http or https, no credentials in it, its name
resolved once and the connection made to an address of that answer, all of whose addresses must be public; the same
again at every redirect. No proxy is taken from the environment, no compressed body is accepted, and bytes,
connecting, silence and the total time are bounded. `worker.net.gate` decides where a URL may lead,
`worker.net.exchange` keeps the clock.
Messages name neither the address that a name resolved to nor, on a redirect, the place it led to."""

from __future__ import annotations

import functools
import hashlib
import http.client
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urljoin

from worker.base.errors import InputFailed, InputRefused, InvalidRequest
from worker.base.files import replacing
from worker.base.stop import Flag
from worker.net import exchange
from worker.net.gate import Gate, Resolver, normalised

MEGABYTE = 1_000_000
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Of 4xx these alone may pass by themselves: Request Timeout, Too Early, Too Many Requests.
_PASSING = frozenset({408, 425, 429})
_ASK_AGAIN = "check the URL, or send the job again"
_OPEN_TO_ALL = "send a URL that opens without a login and has not expired"
# Stores keep `aws-chunked`, the encoding of an upload, as metadata of the object; the body that they send is plain.
_PLAIN_ENCODINGS = frozenset({"", "identity", "aws-chunked"})


@dataclass(frozen=True)
class Limits:
    """What one fetch may take. `read_timeout_s` bounds silence; `total_timeout_s` everything, redirects included."""

    max_bytes: int
    connect_timeout_s: float
    read_timeout_s: float
    total_timeout_s: float


IMAGE_LIMITS = Limits(25 * MEGABYTE, 10.0, 15.0, 60.0)
VIDEO_LIMITS = Limits(250 * MEGABYTE, 10.0, 30.0, 300.0)
LORA_LIMITS = Limits(2_000 * MEGABYTE, 10.0, 30.0, 600.0)
TRAINING_LIMITS = Limits(5_000 * MEGABYTE, 10.0, 30.0, 1_800.0)


LOOKUP_S = 5.0
# Of an upload; its total time is the caller's to say.
PUT_CONNECT_S, PUT_SILENCE_S = 10.0, 60.0


@dataclass(frozen=True)
class PostAnswer:
    """What the receiver of a POST or PUT answered. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]


class PostFailed(Exception):
    """A POST or PUT got no answer; `reason` is short and free of hosts and addresses."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Opener:
    """Opens the URLs of requests; safe to use from several threads.

    `allowlist` holds the entries of PRIVATE_URL_ALLOWLIST; SettingsError names one that cannot be used. In `local` mode
    errors name that variable. `resolver` stands in for socket.getaddrinfo. Every method raises InputBlocked for a URL
    that may not be fetched, and InvalidRequest for a text that is no URL; `path` is the field that the error names.
    """

    def __init__(self, allowlist: Sequence[str] = (), *, local: bool = False, resolver: Resolver | None = None) -> None:
        self._gate = Gate(allowlist, local=local, resolver=resolver)

    def check(self, url: str, *, path: str) -> None:
        """Everything that can be decided without the network: form, scheme, credentials, an address as the host."""
        self._gate.vet(url, path=path)

    def check_name(self, url: str, *, path: str, stop: threading.Event | None = None) -> None:
        """As `check`, and that the host's name leads to no address that may not be reached.

        Raises InputBlocked, Cancelled. A name that cannot be resolved within LOOKUP_S may be one later.
        """
        origin = self._gate.vet(url, path=path)
        with suppress(exchange.Unanswered, OSError, UnicodeError):
            exchange.watched(origin.resolve, exchange.Clock.start(LOOKUP_S, stop))

    def read(self, url: str, *, limits: Limits, path: str, stop: threading.Event | None = None) -> bytes:
        """The body behind `url`, whole.

        Raises InputFailed when there is no answer of status 2xx, in time and within `limits`; Cancelled on `stop`.
        """
        body = bytearray()
        for piece in self._pieces(url, limits, path, stop):
            body += piece
        return bytes(body)

    def download(
        self, url: str, target: Path, *, limits: Limits, path: str, stop: threading.Event | None = None
    ) -> str:
        """Write the body behind `url` to `target`, which appears whole or not at all. Returns its SHA-256 in hex.

        Raises what `read` raises.
        """
        digest = hashlib.sha256()
        with replacing(target, lasting=False) as part, part.open("xb") as file:
            for piece in self._pieces(url, limits, path, stop):
                digest.update(piece)
                file.write(piece)
        return digest.hexdigest()

    def post(
        self,
        url: str,
        body: bytes,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        path: str = "webhook_url",
        stop: threading.Event | None = None,
    ) -> PostAnswer:
        """POST `body` and return the status and headers of the answer, whose body is not read.

        Redirects are not followed. Everything together takes at most `timeout_s`. Raises PostFailed when no answer
        came.
        """
        clock = exchange.Clock.start(timeout_s, stop)
        try:
            with self._hop(url, path, clock, timeout_s, timeout_s, method="POST", body=body, extra=headers) as response:
                return PostAnswer(response.status, {name.lower(): value for name, value in response.getheaders()})
        except exchange.Unanswered as failure:
            raise PostFailed(failure.reason) from failure

    def put(
        self,
        url: str,
        file: Path,
        headers: Mapping[str, str],
        *,
        timeout_s: float,
        path: str = "upload_url",
        stop: Flag | None = None,
    ) -> PostAnswer:
        """PUT the bytes of `file`, as `post` does; `headers` hold the rest that describes them. Raises OSError too."""
        clock = exchange.Clock.start(timeout_s, stop)
        with file.open("rb") as body:
            described = {**headers, "Content-Length": str(os.fstat(body.fileno()).st_size)}
            try:
                with self._hop(
                    url, path, clock, PUT_CONNECT_S, PUT_SILENCE_S, method="PUT", body=body, extra=described
                ) as response:
                    return PostAnswer(response.status, {name.lower(): value for name, value in response.getheaders()})
            except exchange.Unanswered as failure:
                raise PostFailed(failure.reason) from failure

    def _pieces(self, url: str, limits: Limits, path: str, stop: threading.Event | None) -> Iterator[memoryview]:
        """The body behind `url`, with every failure of the network as InputFailed."""
        clock = exchange.Clock.start(limits.total_timeout_s, stop)
        try:
            with self._followed(url, limits, path, clock) as response:
                _check_head(response, path)
                _check_size(response.length or 0, limits, path)
                received = 0
                for piece in exchange.body_of(response):
                    received += len(piece)
                    _check_size(received, limits, path)
                    yield piece
        except exchange.Unanswered as failure:
            raise InputFailed(f"the server {failure.reason}: {_ASK_AGAIN}", path=path) from failure

    @contextmanager
    def _followed(
        self, url: str, limits: Limits, path: str, clock: exchange.Clock
    ) -> Iterator[http.client.HTTPResponse]:
        for _ in range(MAX_REDIRECTS + 1):
            with self._hop(url, path, clock, limits.connect_timeout_s, limits.read_timeout_s) as response:
                location = response.getheader("Location") if response.status in _REDIRECTS else None
                if location is None:
                    yield response
                    return
            url = _redirected(url, location, path)
        raise InputFailed(f"the server redirected more than {MAX_REDIRECTS} times", path=path)

    @contextmanager
    def _hop(
        self,
        url: str,
        path: str,
        clock: exchange.Clock,
        connect_s: float,
        silence_s: float,
        *,
        method: str = "GET",
        body: bytes | IO[bytes] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request to one place, vetted here and connected to nowhere else."""
        origin = self._gate.vet(url, path=path)
        headers = {
            "User-Agent": "videogen-runpod",
            "Accept": "*/*",
            **(extra or {}),
            "Host": origin.host_header,
            "Accept-Encoding": "identity",
        }
        with exchange.exchange(
            functools.partial(origin.connect, connect_s),
            method=method,
            path=origin.request_path,
            headers=headers,
            body=body,
            clock=clock,
            connect_s=connect_s,
            silence_s=silence_s,
        ) as response:
            yield response


def _redirected(url: str, location: str, path: str) -> str:
    """Where a redirect leads. http.client reads headers as Latin-1; servers write UTF-8."""
    try:
        following = urljoin(url, location.encode("latin-1").decode("utf-8", "replace"))
        normalised(following, path=path)
    except (ValueError, InvalidRequest) as failure:
        raise InputFailed("the server redirected to something that is not a URL", path=path) from failure
    return following


def _check_head(response: http.client.HTTPResponse, path: str) -> None:
    if not 200 <= response.status < 300:
        refused = 400 <= response.status < 500 and response.status not in _PASSING
        kind, remedy = (InputRefused, _OPEN_TO_ALL) if refused else (InputFailed, _ASK_AGAIN)
        raise kind(f"the server answered with HTTP status {response.status}: {remedy}", path=path)
    encodings = {part.strip().lower() for part in (response.getheader("Content-Encoding") or "").split(",")}
    if not encodings <= _PLAIN_ENCODINGS:
        raise InputFailed("the server sent the file compressed: serve it without Content-Encoding", path=path)


def _check_size(count: int, limits: Limits, path: str) -> None:
    if count > limits.max_bytes:
        raise InputFailed(f"the file is larger than the {limits.max_bytes / MEGABYTE:g} MB allowed here", path=path)
