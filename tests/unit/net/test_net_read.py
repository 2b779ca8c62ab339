"""Files from URLs: what is asked, bodies and their cap, unusable answers, TLS, redirects, downloads, stops."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kits.certificates import self_signed
from tests.kits.loopback import Server, answering, redirecting_to, resolver_to, response, takes_at_most
from worker.base.errors import Cancelled, InputBlocked, InputFailed
from worker.net import Limits, Opener, gate
from worker.net.opener import IMAGE_LIMITS, LORA_LIMITS, MAX_REDIRECTS, VIDEO_LIMITS

PATH = "job_request_params[0].reference_image_url"
LIMITS = Limits(max_bytes=1000, connect_timeout_s=2.0, read_timeout_s=2.0, total_timeout_s=5.0)
OPENER = Opener(["127.0.0.0/8"])


def read(server: Server, *, limits: Limits = LIMITS, path: str = "/") -> bytes:
    return OPENER.read(server.url(path), limits=limits, path=PATH)


def test_the_byte_caps_are_those_of_the_contract() -> None:
    assert IMAGE_LIMITS.max_bytes == 25_000_000
    assert VIDEO_LIMITS.max_bytes == 250_000_000
    assert LORA_LIMITS.max_bytes == 2_000_000_000


def test_a_request_asks_for_an_unencoded_body_and_names_its_host() -> None:
    with Server(answering(response(b"hello"))) as server:
        assert read(server, path="/a b/ü.png?x=1&y=%20#fragment") == b"hello"
    lines = server.requests[0].decode().split("\r\n")
    assert lines[0] == "GET /a%20b/%C3%BC.png?x=1&y=%20 HTTP/1.1"
    assert "Accept-Encoding: identity" in lines
    assert f"Host: 127.0.0.1:{server.port}" in lines
    assert "Connection: close" in lines


def test_proxies_from_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(answering(response(b"direct"))) as server, Server(answering(response(b"proxied"))) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url())
        assert read(server) == b"direct"
    assert proxy.requests == []


@pytest.mark.parametrize("length", [True, False])
def test_the_byte_cap_holds_with_and_without_a_declared_length(length: bool) -> None:
    with Server(answering(response(b"x" * 1000, length=length))) as server:
        assert len(read(server)) == 1000
    with (
        Server(answering(response(b"x" * 1001, length=length))) as server,
        pytest.raises(InputFailed, match=r"larger than the 0\.001 MB"),
    ):
        read(server)


def test_a_chunked_body_is_joined_and_capped() -> None:
    head = response(headers="Transfer-Encoding: chunked", length=False)
    with Server(answering(head, b"3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n")) as server:
        assert read(server) == b"abcde"
    with (
        Server(answering(head, b"3ea\r\n" + b"x" * 1002 + b"\r\n0\r\n\r\n")) as server,
        pytest.raises(InputFailed, match="larger"),
    ):
        read(server)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        *(((response(b"", status=f"{status} X"),), f"HTTP status {status}") for status in (408, 425, 429, 500, 503)),
        ((response(b"", status="304 Not Modified"),), "HTTP status 304"),
        ((response(b"x", headers="Content-Encoding: gzip"),), "compressed"),
        ((response(b"x", headers="Content-Encoding: identity, br"),), "compressed"),
        ((response(b"", headers="Content-Length: 10", length=False), b"short"), "before the whole file"),
        ((response(headers="Transfer-Encoding: chunked", length=False), b"5\r\nab"), "before the whole file"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "did not answer in HTTP"),
        ((), "refused or broke|did not answer in HTTP"),
        ((b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",), "did not answer in HTTP"),
    ],
)
def test_an_unusable_answer_is_a_retryable_error_that_says_why(parts: tuple[bytes, ...], says: str) -> None:
    with Server(answering(*parts)) as server, pytest.raises(InputFailed, match=says) as caught:
        read(server)
    assert caught.value.path == PATH
    assert caught.value.retryable
    assert "127.0.0.1" not in str(caught.value)
    assert str(caught.value).endswith((": check the URL, or send the job again", "serve it without Content-Encoding"))


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 499])
def test_a_refusal_of_the_server_is_no_retryable_error(status: int) -> None:
    with Server(answering(response(b"", status=f"{status} X"))) as server, pytest.raises(InputFailed) as caught:
        read(server)
    assert (caught.value.code, caught.value.http_code, caught.value.retryable) == ("input_failed", 422, False)
    remedy = "send a URL that opens without a login and has not expired"
    assert str(caught.value) == f"{PATH}: the server answered with HTTP status {status}: {remedy}"


@pytest.mark.parametrize("encoding", ["identity", "aws-chunked", ""])
def test_an_encoding_that_leaves_the_body_plain_is_accepted(encoding: str) -> None:
    with Server(answering(response(b"plain", headers=f"Content-Encoding: {encoding}"))) as server:
        assert read(server) == b"plain"


def test_a_closed_port_and_an_unknown_name_are_retryable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(InputFailed, match="refused or broke"):
        OPENER.read(f"http://127.0.0.1:{port}/", limits=LIMITS, path=PATH)

    def unknown(*_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name: secret-host")

    with pytest.raises(InputFailed, match="could not be resolved") as caught:
        Opener(resolver=unknown).read("http://images.example/", limits=LIMITS, path=PATH)
    assert "secret-host" not in str(caught.value)


@pytest.fixture
def certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """A server's context with a certificate for name.internal, which the worker trusts through SSL_CERT_FILE."""
    file = self_signed("name.internal", tmp_path / "certificate.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    gate.tls.cache_clear()
    yield context
    gate.tls.cache_clear()


def test_a_certificate_is_verified_against_the_name_and_not_the_address(certified: ssl.SSLContext) -> None:
    opener = Opener(["127.0.0.1"], resolver=resolver_to("127.0.0.1"))
    with Server(answering(response(b"sealed")), tls=certified) as server:
        assert opener.read(f"https://name.internal:{server.port}/", limits=LIMITS, path=PATH) == b"sealed"
        for host in ("other.internal", "127.0.0.1"):
            with pytest.raises(InputFailed, match="certificate"):
                opener.read(f"https://{host}:{server.port}/", limits=LIMITS, path=PATH)
    assert f"Host: name.internal:{server.port}" in server.requests[0].decode()
    assert len(server.requests) == 1


def test_a_certificate_that_nobody_signed_is_refused(
    certified: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    opener = Opener(["127.0.0.1"], resolver=resolver_to("127.0.0.1"))
    with Server(answering(response()), tls=certified) as server, pytest.raises(InputFailed, match="certificate"):
        opener.read(f"https://name.internal:{server.port}/", limits=LIMITS, path=PATH)
    assert server.requests == []


def test_tls_to_a_server_that_speaks_plain_http_is_a_retryable_error() -> None:
    def serve(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(response(b"plain"))

    with Server(serve) as server, pytest.raises(InputFailed, match=r"TLS|refused|did not"):
        OPENER.read(server.url().replace("http:", "https:"), limits=Limits(1000, 0.5, 0.5, 0.5), path=PATH)


@pytest.mark.parametrize("status", ["301 a", "302 b", "303 c", "307 d", "308 e"])
def test_redirects_are_followed(status: str) -> None:
    with Server(answering(response(b"there"))) as goal, redirecting_to(goal.url("/x?y=z"), status) as start:
        assert read(start) == b"there"
    assert goal.requests[0].startswith(b"GET /x?y=z ")


def test_a_relative_redirect_keeps_the_host() -> None:
    def serve(connection: socket.socket, request: bytes) -> None:
        moved = response(status="302 Found", headers="Location: ../new")
        connection.sendall(response(b"new") if request.startswith(b"GET /new ") else moved)

    with Server(serve) as server:
        assert read(server, path="/old/file") == b"new"


def test_the_number_of_redirects_is_bounded() -> None:
    def countdown(connection: socket.socket, request: bytes) -> None:
        left = int(request.split()[1].strip(b"/"))
        location = f"Location: /{left - 1}"
        connection.sendall(response(status="302 Found", headers=location) if left else response(b"done"))

    with Server(countdown) as server:
        assert read(server, path=f"/{MAX_REDIRECTS}") == b"done"
        with pytest.raises(InputFailed, match="redirected more than 5 times"):
            read(server, path=f"/{MAX_REDIRECTS + 1}")


@pytest.mark.parametrize("location", ["//[::1", "http://host:port/"])
def test_a_redirect_to_no_url_is_the_fault_of_the_server(location: str) -> None:
    with redirecting_to(location) as server, pytest.raises(InputFailed, match="not a URL"):
        read(server)


def test_a_redirect_from_an_allowed_place_to_another_port_is_blocked() -> None:
    with Server(answering(response(b"secret"))) as inner, redirecting_to(inner.url()) as start:
        opener = Opener([f"127.0.0.1:{start.port}"])
        with pytest.raises(InputBlocked):
            opener.read(start.url(), limits=LIMITS, path=PATH)
    assert inner.requests == []


def test_a_download_appears_whole_with_its_digest(tmp_path: Path) -> None:
    body = bytes(range(256)) * 3
    target = tmp_path / "lora.safetensors"
    with Server(answering(response(body))) as server:
        digest = OPENER.download(server.url(), target, limits=LIMITS, path=PATH)
    assert target.read_bytes() == body
    assert digest == hashlib.sha256(body).hexdigest()
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_download_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "lora.safetensors"
    target.write_bytes(b"before")
    head = response(b"", headers="Content-Length: 900", length=False)
    with Server(answering(head, b"half")) as server, pytest.raises(InputFailed):
        OPENER.download(server.url(), target, limits=LIMITS, path=PATH)
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_not_blamed_on_the_server(tmp_path: Path) -> None:
    with Server(answering(response(b"body"))) as server, pytest.raises(FileNotFoundError):
        OPENER.download(server.url(), tmp_path / "missing" / "file", limits=LIMITS, path=PATH)


def test_a_stop_ends_a_stalled_read_promptly() -> None:
    stop = threading.Event()
    slow = Limits(1000, 20.0, 20.0, 20.0)
    with Server(lambda *_: server.hold()) as server:
        threading.Timer(0.2, stop.set).start()
        with takes_at_most(3.0), pytest.raises(Cancelled):
            OPENER.read(server.url(), limits=slow, path=PATH, stop=stop)


def test_a_stop_that_was_set_before_opens_nothing() -> None:
    stop = threading.Event()
    stop.set()
    with Server(answering(response(b"late"))) as server:
        with pytest.raises(Cancelled):
            OPENER.read(server.url(), limits=LIMITS, path=PATH, stop=stop)
        time.sleep(0.05)
    assert not any(server.requests)
