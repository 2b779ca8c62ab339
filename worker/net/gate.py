"""Which places a request's URL may lead to, and the socket to one of them.

A name is resolved once, every address of the answer must be public, and the connection is made to one of those. What
is public is decided by ssrfguard's table; no other file knows that library. PRIVATE_URL_ALLOWLIST opens exactly
what it names:

    minio.internal         the name, on every port, wherever it points
    minio.internal:9000    the name, on that port
    10.0.0.0/8, fd00::/8   addresses of that network, on every port, by whatever name
    127.0.0.1, [::1]       that address, on every port
    127.0.0.1:8080         that address, on that port; IPv6: [::1]:8080
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import quote, urldefrag, urlsplit

import certifi
import ssrfguard

from worker.base.errors import InputBlocked, InvalidRequest, SettingsError

Resolver = ssrfguard.Resolver
MAX_URL_LENGTH = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
# Judges the form alone: every address and every port is admitted.
_FORM = ssrfguard.Policy(allowed_networks=_EVERYWHERE, allowed_ports=frozenset(range(1, 65_536)))
# What a request line cannot carry; control characters are left for the policy to refuse.
_UNSENDABLE = re.compile(r'[ "<>\\^`{|}]|[^\x00-\x7f]+')

_NOT_A_URL = "is not a URL: write one like https://example.com/file"
_BLOCKED = "this URL may not be fetched: its host, and that of every redirect, must have public addresses only"


@dataclass(frozen=True)
class _Opening:
    """One entry of the allowlist: `host` or `network` is set; `port` None means every port."""

    host: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None

    def networks_for(self, target: ssrfguard.Target) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks that this entry opens for `target`."""
        if self.port is not None and self.port != target.port:
            return ()
        if self.network is not None:
            return (self.network,)
        return _EVERYWHERE if target.host.rstrip(".") == self.host else ()


class Gate:
    """Judges URLs. `allowlist` holds the entries of PRIVATE_URL_ALLOWLIST; SettingsError names one that is unusable.

    `resolver` stands in for socket.getaddrinfo.
    """

    def __init__(self, allowlist: Sequence[str] = (), *, resolver: Resolver | None = None) -> None:
        self._openings = tuple(_parsed(entry) for entry in allowlist)
        self._resolver = resolver

    def vet(self, url: str, *, path: str) -> Origin:
        """What can be decided without the network: form, scheme, credentials, an address in place of a name.

        Raises InputBlocked for a URL that may not be fetched, InvalidRequest for a text that is no URL.
        """
        url = normalised(url, path=path)
        try:
            target = _FORM.check_url(url)
        except ssrfguard.SSRFGuardError as refused:
            message = "this URL may not be fetched: its host and port must be written plainly"
            raise InputBlocked(message, path=path) from refused
        networks = tuple(network for opening in self._openings for network in opening.networks_for(target))
        policy = ssrfguard.Policy(allowed_networks=networks, allowed_ports=frozenset({target.port}))
        try:
            policy.check_url(url)
        except ssrfguard.SSRFGuardError as refused:
            raise InputBlocked(_BLOCKED, path=path) from refused
        return Origin(url, target, policy, self._resolver, path)


@dataclass(frozen=True)
class Origin:
    """A vetted URL. `policy` admits this one origin, at its public addresses and those that the allowlist opens."""

    url: str
    target: ssrfguard.Target
    policy: ssrfguard.Policy
    resolver: Resolver | None
    path: str

    @property
    def host_header(self) -> str:
        host = f"[{self.target.host}]" if ":" in self.target.host else self.target.host
        return host if self.target.port == _DEFAULT_PORTS[self.target.scheme] else f"{host}:{self.target.port}"

    @property
    def request_path(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def connect(self, timeout_s: float) -> socket.socket:
        """A socket to a vetted address, TLS done. Raises InputBlocked, or whatever the network raises.

        The name lookup obeys no limit: call this in a thread that may be left behind.
        """
        try:
            addresses = ssrfguard.resolve(self.target, policy=self.policy, resolver=self.resolver)
            # Half of the time for each address: one that swallows packets leaves time for the next.
            plain = ssrfguard.connect(addresses, policy=self.policy, timeout=timeout_s / 2)
        except ssrfguard.SSRFGuardError as refused:
            raise InputBlocked(_BLOCKED, path=self.path) from refused
        if self.target.scheme == "http":
            return plain
        try:
            plain.settimeout(timeout_s)
            return _tls().wrap_socket(plain, server_hostname=self.target.host.rstrip("."))
        except BaseException:
            plain.close()
            raise


def normalised(url: str, *, path: str) -> str:
    """`url` without its fragment, and with what a request line cannot carry percent-encoded behind the host."""
    if len(url) > MAX_URL_LENGTH:
        raise InvalidRequest(f"a URL may have {MAX_URL_LENGTH} characters at most", path=path)
    _check_form(url, path)
    head, slashes, rest = urldefrag(url.strip()).url.partition("://")
    end = next((index for index, sign in enumerate(rest) if sign in "/?"), len(rest))
    encoded = _UNSENDABLE.sub(lambda found: quote(found[0], errors="replace"), rest[end:])
    return head + slashes + rest[:end] + encoded


@functools.cache
def _tls() -> ssl.SSLContext:
    """The system's certificate authorities (and those of SSL_CERT_FILE), with certifi's for images that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _parsed(entry: str) -> _Opening:
    host, port = entry.strip().lower(), None
    try:
        return _Opening(None, _network(host), None)
    except ValueError:
        pass
    if "/" not in host and ":" in host:
        host, _, digits = host.rpartition(":")
        if not digits.isdecimal() or int(digits) not in _FORM.allowed_ports:
            raise SettingsError([f"PRIVATE_URL_ALLOWLIST: {entry!r}: write a host, host:port or CIDR"])
        port = int(digits)
    try:
        return _Opening(None, _network(host), port)
    except ValueError:
        pass
    if not host or set(host) & set("/[]:*@%"):
        raise SettingsError([f"PRIVATE_URL_ALLOWLIST: {entry!r}: write a host, host:port or CIDR"])
    return _Opening(host.rstrip("."), None, port)


def _network(text: str) -> IPv4Network | IPv6Network:
    """ValueError for a text that is no address or network, or one that ssrfguard refuses to open."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    network = ip_network(bare, strict=False)
    ssrfguard.Policy(allowed_networks=(network,))
    return network


def _check_form(url: str, path: str) -> None:
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise InvalidRequest(_NOT_A_URL, path=path) from None
    if not parts.scheme:
        raise InvalidRequest(_NOT_A_URL, path=path)
    if parts.scheme not in ("http", "https"):
        raise InputBlocked("only http and https URLs may be fetched", path=path)
    if "@" in parts.netloc:
        raise InputBlocked("a URL must not hold a user name or password", path=path)
    if not host:
        raise InvalidRequest(_NOT_A_URL, path=path)
