"""No URL of a request reaches an internal listener, and no server holds the worker beyond its limits."""

from __future__ import annotations

import gzip
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kits.loopback import Serve, Server, answering, has_ipv6, response, takes_at_most, untouched
from worker.base.errors import InputBlocked, InputFailed
from worker.net import Limits, Opener, PostFailed
from worker.net.gate import Resolver

PATH = "job_request_params[0].reference_image_url"
LIMITS = Limits(max_bytes=1_000_000, connect_timeout_s=0.5, read_timeout_s=0.5, total_timeout_s=0.5)
# The limit and the second that the issue allows beyond it.
BOUND_S = LIMITS.total_timeout_s + 1.0
INTERNAL = ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",)

Fetch = Callable[[Opener, str, Path], object]
FETCHES: dict[str, Fetch] = {
    "image": lambda opener, url, _: opener.read(url, limits=LIMITS, path=PATH),
    "video": lambda opener, url, folder: opener.download(url, folder / "video", limits=LIMITS, path=PATH),
    "lora": lambda opener, url, folder: opener.download(url, folder / "lora", limits=LIMITS, path=PATH),
    "webhook": lambda opener, url, _: opener.post(url, b"{}", {}, timeout_s=LIMITS.total_timeout_s),
}

LITERALS = [
    "http://127.0.0.1:{port}/",
    "http://127.1.2.3:{port}/",
    "http://0.0.0.0:{port}/",
    "http://127.0.0.1.:{port}/",
    "http://127.1:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://017700000001:{port}/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127。0。0。1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[64:ff9b:1::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://[2001:0:7f00:1::]:{port}/",
    "http://[fec0::1]:{port}/",
    "http://[fe80::1]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[fc00::1]:{port}/",
    "http://[fd00:ec2::254]/latest/meta-data/",
    "http://[ff02::1]:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.170.2/v2/credentials",
    "http://[::ffff:169.254.169.254]/",
    "http://2852039166/latest/meta-data/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.0.1/",
    "http://192.0.0.192/opc/v2/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
]
DISGUISES = [
    "http://public.example@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}@public.example/",
    "http://user:word@127.0.0.1:{port}/",
    "http://public.example\\@127.0.0.1:{port}/",
    "http://127.0.0.1\\.public.example:{port}/",
    "http://127.0.0.1\t:{port}/",
    "http://127.0.0.1 :{port}/",
    "http://127.0.0.1%00.public.example:{port}/",
]
OTHER_SCHEMES = [
    "file:///etc/passwd",
    "file://127.0.0.1:{port}/etc/passwd",
    "FILE:///etc/passwd",
    "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_GET%20/",
    "dict://127.0.0.1:{port}/stat",
    "ldap://127.0.0.1:{port}/",
    "unix:///var/run/docker.sock",
    "data:text/plain,x",
]
NAMES = ["http://localhost:{port}/", "http://LocalHost:{port}/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/"]
HOSTILE = {"literals": LITERALS, "disguises": DISGUISES, "other schemes": OTHER_SCHEMES, "names": NAMES}
INTERNAL_ANSWERS = [
    ("127.0.0.1",),
    ("::1",),
    ("0.0.0.0",),
    ("169.254.169.254",),
    ("100.64.0.1",),
    ("10.1.2.3",),
    ("::ffff:127.0.0.1",),
    ("64:ff9b::7f00:1",),
    ("2002:7f00:1::1",),
    ("fec0::1",),
    ("fe80::1%1",),
    ("fd12:3456::1",),
    ("8.8.8.8", "127.0.0.1"),
    ("127.0.0.1", "8.8.8.8"),
    ("2606:4700::1111", "127.0.0.1"),
    ("8.8.8.8", "::1"),
]


def name_server(*answers: tuple[str, ...]) -> tuple[Resolver, list[str]]:
    """A resolver that gives `answers` one after the other (the last one for ever), and the names it was asked."""
    asked: list[str] = []

    def resolve(host: str, port: int, *_: object) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
        asked.append(host)
        rows: list[tuple[int, int, int, str, tuple[object, ...]]] = []
        for address in answers[min(len(asked), len(answers)) - 1]:
            place = (address, port, 0, 0) if ":" in address else (address, port)
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            rows.append((family, socket.SOCK_STREAM, 6, "", place))
        return rows

    return resolve, asked


@pytest.mark.parametrize("kind", FETCHES)
@pytest.mark.parametrize("urls", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_url_is_blocked_and_touches_nothing(kind: str, urls: list[str], tmp_path: Path) -> None:
    for url in urls:
        with untouched(*INTERNAL) as port, pytest.raises(InputBlocked) as caught:
            pytest.fail(f"{url}: {FETCHES[kind](Opener(), url.format(port=port), tmp_path)}")
        assert "169.254" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", FETCHES)
def test_a_name_with_one_internal_address_is_blocked(kind: str, tmp_path: Path) -> None:
    for answer in INTERNAL_ANSWERS:
        resolver, asked = name_server(answer)
        with untouched(*INTERNAL) as port, pytest.raises(InputBlocked) as caught:
            FETCHES[kind](Opener(resolver=resolver), f"http://images.example:{port}/x", tmp_path)
        assert asked == ["images.example"]
        assert all(address not in str(caught.value) for address in answer)


@pytest.mark.parametrize("kind", ["image", "video", "lora"])
@pytest.mark.parametrize("urls", HOSTILE.values(), ids=HOSTILE)
def test_a_redirect_to_a_hostile_url_is_blocked(kind: str, urls: list[str], tmp_path: Path) -> None:
    for url in urls:
        if "\t" in url:
            continue  # no header
        with untouched(*INTERNAL) as port:
            location = url.format(port=port).encode().decode("latin-1")
            moved = answering(response(status="302 Found", headers=f"Location: {location}"))
            with Server(moved, "127.0.0.2") as public:
                with pytest.raises(InputBlocked):
                    pytest.fail(f"{url}: {FETCHES[kind](Opener(['127.0.0.2']), public.url(), tmp_path)}")
                assert len(public.requests) == 1


@pytest.mark.parametrize("kind", FETCHES)
def test_a_name_server_that_moves_is_asked_once_for_each_request(kind: str, tmp_path: Path) -> None:
    resolver, asked = name_server(("127.0.0.2",), ("127.0.0.1",))
    with (
        Server(answering(response(b"public")), "127.0.0.2") as public,
        # On the same port, so that a second lookup would lead a connection there.
        untouched("127.0.0.1", port=public.port),
    ):
        opener = Opener(["127.0.0.2"], resolver=resolver)
        url = f"http://images.example:{public.port}/"
        FETCHES[kind](opener, url, tmp_path)
        assert asked == ["images.example"]
        with pytest.raises(InputBlocked):
            FETCHES[kind](opener, url, tmp_path)
    assert len(public.requests) == 1


def test_a_name_that_moves_between_redirects_is_judged_again() -> None:
    resolver, _ = name_server(("127.0.0.2",), ("127.0.0.1",))
    with Server(answering(response(status="302 Found", headers="Location: /again")), "127.0.0.2") as public:
        opener = Opener(["127.0.0.2"], resolver=resolver)
        with pytest.raises(InputBlocked):
            opener.read(f"http://images.example:{public.port}/", limits=LIMITS, path=PATH)


def test_a_name_server_that_never_answers_is_left_behind() -> None:
    with Server(answering()) as server:

        def stall(*_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            server.hold()
            raise socket.gaierror(socket.EAI_AGAIN, "late")

        opener = Opener(resolver=stall)
        with takes_at_most(BOUND_S), pytest.raises(InputFailed, match="within"):
            opener.read("http://images.example/", limits=LIMITS, path=PATH)
        with takes_at_most(BOUND_S), pytest.raises(PostFailed, match="within"):
            opener.post("http://images.example/", b"{}", {}, timeout_s=LIMITS.total_timeout_s)


def endless_header() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"X-Filler: y\r\n"


def endless_header_line() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX-Filler: "
    while True:
        yield b"y"


def body_drip() -> Iterator[bytes]:
    yield response(headers="Content-Length: 1000", length=False)
    while True:
        yield b"z"


def chunk_drip() -> Iterator[bytes]:
    yield response(headers="Transfer-Encoding: chunked", length=False)
    while True:
        yield b"1\r\nz\r\n"


def continues() -> Iterator[bytes]:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("pieces", [endless_header, endless_header_line, body_drip, chunk_drip, continues])
def test_a_server_that_drips_is_cut_off_at_the_total_time(
    pieces: Callable[[], Iterator[bytes]], tmp_path: Path
) -> None:
    with Server(lambda connection, _: server.drip(connection, pieces(), 0.02)) as server:
        opener = Opener(["127.0.0.1"])
        for kind in ("image", "lora"):
            with takes_at_most(BOUND_S), pytest.raises(InputFailed, match=r"within 0\.5 s|not answer in HTTP"):
                FETCHES[kind](opener, server.url(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_chain_of_slow_redirects_shares_one_clock() -> None:
    def serve(connection: socket.socket, _request: bytes) -> None:
        server.drip(connection, iter([b"HTTP/1.1 302 Found\r\n", b"Location: /\r\n", b"\r\n"]), 0.1)

    with Server(serve) as server, takes_at_most(BOUND_S), pytest.raises(InputFailed, match=r"within 0\.5 s"):
        Opener(["127.0.0.1"]).read(server.url(), limits=LIMITS, path=PATH)


def test_silence_is_cut_off_before_the_total_time() -> None:
    limits = Limits(max_bytes=1000, connect_timeout_s=1.0, read_timeout_s=0.3, total_timeout_s=20.0)
    says = r"nothing for 0\.3 s"
    with Server(lambda *_: server.hold()) as server, takes_at_most(3.0), pytest.raises(InputFailed, match=says):
        Opener(["127.0.0.1"]).read(server.url(), limits=limits, path=PATH)


STREAM_BYTES = 256_000_000


def plain_stream() -> Iterator[bytes]:
    yield response(length=False)
    yield from [bytes(1_000_000)] * (STREAM_BYTES // 1_000_000)


def declared_stream() -> Iterator[bytes]:
    yield response(headers=f"Content-Length: {STREAM_BYTES}", length=False)
    yield from [bytes(1_000_000)] * (STREAM_BYTES // 1_000_000)


def negative_chunk_stream() -> Iterator[bytes]:
    yield response(headers="Transfer-Encoding: chunked", length=False) + b"-1\r\n"
    yield from [bytes(1_000_000)] * (STREAM_BYTES // 1_000_000)


def header_stream() -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\nX: "
    yield from [b"y" * 1_000_000] * (STREAM_BYTES // 1_000_000)


def gzip_bomb() -> Iterator[bytes]:
    body = gzip.compress(bytes(50_000_000))
    yield response(body, headers="Content-Encoding: gzip\nContent-Type: image/png")


@pytest.mark.parametrize("pieces", [plain_stream, declared_stream, negative_chunk_stream, header_stream, gzip_bomb])
@pytest.mark.parametrize("kind", ["image", "lora"])
def test_a_flood_is_refused_in_little_memory(pieces: Callable[[], Iterator[bytes]], kind: str, tmp_path: Path) -> None:
    serve: Serve = lambda connection, _: server.drip(connection, pieces(), 0)  # noqa: E731
    with Server(serve) as server:
        tracemalloc.start()
        try:
            with pytest.raises(InputFailed):
                FETCHES[kind](Opener(["127.0.0.1"]), server.url(), tmp_path)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak_bytes < 100_000_000
    assert server.sent_bytes < 50_000_000
    assert list(tmp_path.iterdir()) == []
