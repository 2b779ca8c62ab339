from __future__ import annotations

import datetime
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.kits.loopback import Server, answering, has_ipv6, resolver_to, response, takes_at_most
from worker.base.errors import Cancelled, InputBlocked, InputFailed, InvalidRequest, SettingsError, WorkerError
from worker.net import Limits, Opener, PostFailed, gate
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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451, 499])
def test_a_refusal_of_the_server_is_no_retryable_error(status: int) -> None:
    with Server(answering(response(b"", status=f"{status} X"))) as server, pytest.raises(InputFailed) as caught:
        read(server)
    assert (caught.value.code, caught.value.http_code, caught.value.retryable) == ("input_failed", 422, False)
    assert str(caught.value) == f"{PATH}: the server answered with HTTP status {status}"


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
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "name.internal")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("name.internal")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(certificate.public_bytes(pem) + secret)
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


def redirecting_to(location: str, status: str = "302 Found") -> Server:
    return Server(answering(response(status=status, headers=f"Location: {location}")))


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


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("", InvalidRequest),
        ("portrait.png", InvalidRequest),
        ("http://", InvalidRequest),
        ("http:/one-slash", InvalidRequest),
        ("http://[::1", InvalidRequest),
        ("http://example.com:port/", InvalidRequest),
        ("http://example.com/" + "x" * 8192, InvalidRequest),
        ("file:///etc/passwd", InputBlocked),
        ("ftp://example.com/x", InputBlocked),
        ("http://user:secret@example.com/", InputBlocked),
        ("http://user@example.com/", InputBlocked),
        ("http://127.0.0.1/", InputBlocked),
        ("http://example.com:0/", InputBlocked),
        ("http://exam\tple.com/", InputBlocked),
    ],
)
def test_check_judges_without_the_network(url: str, error: type[WorkerError]) -> None:
    def unused(*_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        raise AssertionError("check must not resolve")

    with pytest.raises(error) as caught:
        Opener(resolver=unused).check(url, path=PATH)
    assert caught.value.path == PATH
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://user:secret@example.com/", "http://user@example.com/", "http://@example.com/"])
def test_who_sends_a_user_name_is_told_what_to_leave_out(url: str) -> None:
    with pytest.raises(InputBlocked, match="must not hold a user name or password"):
        Opener().check(url, path=PATH)


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "http://example.com:8443/a?b",
        " https://example.com/x ",
        "http://8.8.8.8/",
        "HTTPS://Example.COM/",
    ],
)
def test_check_passes_what_may_be_public(url: str) -> None:
    Opener().check(url, path=PATH)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("2000::1", True),
        ("2606:4700::1111", True),
        ("2001:4860:4860::8888", True),
        ("3ffe:ffff::1", True),
        ("3fff:1000::1", True),
        # Not in 2000::/3, which is all that is assigned for the public.
        ("1fff:ffff::1", False),
        ("4000::1", False),
        ("8000::1", False),
        ("::ffff:0:169.254.169.254", False),
        ("::ffff:0:7f00:1", False),
        ("::ffff:0:8.8.8.8", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False),
        ("100::1", False),
        ("5f00::1", False),
        ("fc00::1", False),
        # Special within it.
        ("2001:db8::1", False),
        ("3fff:fff::1", False),
        ("2002:7f00:1::1", False),
        ("2001:0:7f00:1::", False),
    ],
)
def test_of_ipv6_only_what_is_assigned_for_the_public_is_public(address: str, public: bool) -> None:
    """As a literal, and as the answer of a name server."""
    opener = Opener(resolver=resolver_to(address))
    limits = Limits(1000, 0.01, 0.01, 0.01)
    for url in (f"http://[{address}]/", "http://images.example/"):
        # Nothing of this machine reaches a public IPv6 address in a hundredth of a second.
        with pytest.raises(InputFailed if public else InputBlocked):
            opener.read(url, limits=limits, path=PATH)


@pytest.mark.parametrize("local", [False, True])
def test_the_variable_that_opens_an_address_is_named_to_the_operator_alone(local: bool) -> None:
    opener = Opener(local=local, resolver=resolver_to("127.0.0.1"))
    for attempt in (
        lambda: opener.check("http://127.0.0.1/", path=PATH),
        lambda: opener.read("http://images.example/", limits=LIMITS, path=PATH),
    ):
        with pytest.raises(InputBlocked) as caught:
            attempt()
        assert ("PRIVATE_URL_ALLOWLIST" in str(caught.value)) == local


@pytest.mark.parametrize(
    ("entry", "url", "opens"),
    [
        ("127.0.0.1:{port}", "http://127.0.0.1:{port}/", True),
        ("127.0.0.1:{port}", "http://name.internal:{port}/", True),
        ("127.0.0.1:1", "http://127.0.0.1:{port}/", False),
        ("127.0.0.2:{port}", "http://127.0.0.1:{port}/", False),
        ("127.0.0.1", "http://127.0.0.1:{port}/", True),
        ("127.0.0.0/8", "http://127.0.0.1:{port}/", True),
        ("127.0.0.0/8", "http://name.internal:{port}/", True),
        ("127.1.0.0/16", "http://127.0.0.1:{port}/", False),
        ("10.0.0.0/8", "http://127.0.0.1:{port}/", False),
        ("name.internal", "http://name.internal:{port}/", True),
        ("Name.Internal", "http://NAME.internal.:{port}/", True),
        ("name.internal:{port}", "http://name.internal:{port}/", True),
        ("name.internal:1", "http://name.internal:{port}/", False),
        ("name.internal", "http://127.0.0.1:{port}/", False),
        ("name.internal", "http://other.name.internal:{port}/", False),
        ("internal", "http://name.internal:{port}/", False),
        ("name.internal", "http://evilname.internal:{port}/", False),
        ("127.0.0.1:{port}", "http://[::ffff:127.0.0.1]:{port}/", False),
    ],
)
def test_the_allowlist_opens_exactly_what_it_names(entry: str, url: str, opens: bool) -> None:
    with Server(answering(response(b"inside"))) as server:
        opener = Opener(
            [entry.format(port=server.port)], resolver=resolver_to("127.0.0.1") if "name." in url.lower() else None
        )
        url = url.format(port=server.port)
        if opens:
            assert opener.read(url, limits=LIMITS, path=PATH) == b"inside"
        else:
            with pytest.raises(InputBlocked):
                opener.read(url, limits=LIMITS, path=PATH)
    assert bool(server.requests) == opens


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
@pytest.mark.parametrize(
    ("entry", "opens"),
    [("::1", True), ("[::1]", True), ("[::1]:{port}", True), ("::/64", True), ("[::1]:1", False), ("fd00::/8", False)],
)
def test_the_allowlist_takes_ipv6(entry: str, opens: bool) -> None:
    def serve(port: int) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(response(b"six"))

    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        port = listener.getsockname()[1]
        opener = Opener([entry.format(port=port)])
        if not opens:
            with pytest.raises(InputBlocked):
                opener.read(f"http://[::1]:{port}/", limits=LIMITS, path=PATH)
            return
        thread = threading.Thread(target=serve, args=(port,), daemon=True)
        thread.start()
        assert opener.read(f"http://[::1]:{port}/", limits=LIMITS, path=PATH) == b"six"
        thread.join()


@pytest.mark.parametrize(
    "entry",
    ["", ":80", "host:", "host:0", "host:65536", "host:http", "http://host", "64:ff9b::/96", "10.0.0.0/33", "a/b"],
)
def test_an_unusable_allowlist_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PRIVATE_URL_ALLOWLIST"):
        Opener([entry])


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


def test_post_sends_the_bytes_and_reports_status_and_headers() -> None:
    answer = response(b"busy", status="429 Slow down", headers="Retry-After: 7")
    with Server(answering(answer)) as server:
        told = OPENER.post(server.url("/hook"), b'{"a":1}', {"webhook-id": "m1"}, timeout_s=5)
    assert told.status == 429
    assert told.headers["retry-after"] == "7"
    head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /hook HTTP/1.1\r\n")
    assert b"webhook-id: m1" in head
    assert body == b'{"a":1}'


def test_post_follows_no_redirect() -> None:
    with Server(answering(response(b"x"))) as goal, redirecting_to(goal.url()) as start:
        assert OPENER.post(start.url(), b"{}", {}, timeout_s=5).status == 302
    assert goal.requests == []


def test_post_does_not_read_the_answer_body() -> None:
    def endless(connection: socket.socket, _request: bytes) -> None:
        connection.sendall(response(length=False))
        server.drip(connection, iter([b"x" * 65_536] * 200), 0)

    with Server(endless) as server:
        assert OPENER.post(server.url(), b"{}", {}, timeout_s=5).status == 200
    assert server.sent_bytes < 8_000_000  # what the kernel's buffers take


def drips() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X"


def test_post_bounds_its_total_time() -> None:
    with Server(lambda connection, _: server.drip(connection, drips(), 0.05)) as server:
        with takes_at_most(1.5), pytest.raises(PostFailed, match=r"within 0\.5 s") as caught:
            OPENER.post(server.url(), b"{}", {}, timeout_s=0.5)
        assert "127.0.0.1" not in caught.value.reason


def test_post_to_a_receiver_that_does_not_read_is_bounded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with takes_at_most(1.5), pytest.raises(PostFailed):
            OPENER.post(url, b"x" * 50_000_000, {}, timeout_s=0.5)


def test_post_to_an_internal_address_is_blocked_under_its_own_path() -> None:
    with pytest.raises(InputBlocked) as caught:
        Opener().post("http://169.254.169.254/", b"{}", {}, timeout_s=1)
    assert caught.value.path == "webhook_url"
