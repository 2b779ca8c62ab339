"""Which URLs may be opened: what `check` judges, addresses that are public, and the allowlist."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.kits.loopback import Server, answering, has_ipv6, resolver_to, response
from worker.base.errors import InputBlocked, InputFailed, InvalidRequest, SettingsError, WorkerError
from worker.net import Limits, Opener

PATH = "job_request_params[0].reference_image_url"
LIMITS = Limits(max_bytes=1000, connect_timeout_s=2.0, read_timeout_s=2.0, total_timeout_s=5.0)


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
        with nullcontext() if opens else pytest.raises(InputBlocked):
            assert opener.read(url, limits=LIMITS, path=PATH) == b"inside"
    assert bool(server.requests) == opens


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback")
@pytest.mark.parametrize(
    ("entry", "opens"),
    [("::1", True), ("[::1]", True), ("[::1]:{port}", True), ("::/64", True), ("[::1]:1", False), ("fd00::/8", False)],
)
def test_the_allowlist_takes_ipv6(entry: str, opens: bool) -> None:
    with Server(answering(response(b"six")), "::1") as server:
        opener = Opener([entry.format(port=server.port)])
        with nullcontext() if opens else pytest.raises(InputBlocked):
            assert opener.read(f"http://[::1]:{server.port}/", limits=LIMITS, path=PATH) == b"six"
    assert bool(server.requests) == opens


@pytest.mark.parametrize(
    "entry",
    ["", ":80", "host:", "host:0", "host:65536", "host:http", "http://host", "64:ff9b::/96", "10.0.0.0/33", "a/b"],
)
def test_an_unusable_allowlist_entry_stops_the_start(entry: str) -> None:
    with pytest.raises(SettingsError, match="PRIVATE_URL_ALLOWLIST"):
        Opener([entry])
