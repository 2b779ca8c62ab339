"""Webhooks on the wire: what `post` sends, and how long it may take."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.kits.loopback import Server, answering, redirecting_to, response, takes_at_most
from worker.base.errors import InputBlocked
from worker.net import Opener, PostFailed

OPENER = Opener(["127.0.0.0/8"])


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
