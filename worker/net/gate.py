"""Which places a request's URL may lead to, and the socket to one of them.

A name is resolved once, every address of the answer must be public, and the connection is made to one of those. What
is public is decided by ssrfguard's table, made stricter here; PRIVATE_URL_ALLOWLIST opens what `worker.base.allowlist`
says.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from urllib.parse import quote, urldefrag, urlsplit

import certifi
import ssrfguard

from worker.base.allowlist import Network, Opening, parse
from worker.base.errors import InputBlocked, InvalidRequest, SettingsError

Resolver = ssrfguard.Resolver
MAX_URL_LENGTH = 8192
_DEFAULT_PORTS = {"http": 80, "https": 443}
_EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
# Judges the form alone: every address and every port is admitted.
_FORM = ssrfguard.Policy(allowed_networks=_EVERYWHERE, allowed_ports=frozenset(range(1, 65_536)))
# Of IPv6 only 2000::/3 is assigned for the public (RFC 4291, 2.4). What carries an IPv4 address counts as not public,
# whatever that address is: translators that the table does not know would hide one (::ffff:0:169.254.169.254).
_NOT_PUBLIC = ssrfguard.AddressTable(
    (
        *(
            replace(block, reach=ssrfguard.Reach.DENIED) if block.reach is ssrfguard.Reach.TRANSLATED else block
            for block in ssrfguard.DEFAULT_DENIED.blocks
        ),
        *(
            ssrfguard.Block(ip_network(network), "outside of global unicast", "RFC4291", ssrfguard.Reach.DENIED)
            for network in ("::/3", "4000::/2", "8000::/1")
        ),
    )
)
# What a request line cannot carry; control characters are left for the policy to refuse.
_UNSENDABLE = re.compile(r'[ "<>\\^`{|}]|[^\x00-\x7f]+')

_NOT_A_URL = "is not a URL: write one like https://example.com/file"
_BLOCKED = "this URL may not be fetched: its host, and that of every redirect, must have public addresses only"
# Said to the operator alone: on the platform whoever reads the message cannot set it.
_HOW_TO_OPEN = "; PRIVATE_URL_ALLOWLIST opens others"


class Gate:
    """Judges URLs. `allowlist` holds the entries of PRIVATE_URL_ALLOWLIST; SettingsError names one that is unusable.

    `local`: the worker's operator reads what is refused, which then says how to open an address. `resolver` stands in
    for socket.getaddrinfo.
    """

    def __init__(self, allowlist: Sequence[str] = (), *, local: bool = False, resolver: Resolver | None = None) -> None:
        try:
            self._openings = tuple(map(parse, allowlist))
        except ValueError as failure:
            raise SettingsError([f"PRIVATE_URL_ALLOWLIST: {failure}: write a host, host:port or CIDR"]) from failure
        self._blocked = _BLOCKED + (_HOW_TO_OPEN if local else "")
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
        networks = tuple(network for opening in self._openings for network in _opened(opening, target))
        policy = ssrfguard.Policy(
            denied_networks=_NOT_PUBLIC, allowed_networks=networks, allowed_ports=frozenset({target.port})
        )
        try:
            policy.check_url(url)
        except ssrfguard.SSRFGuardError as refused:
            raise InputBlocked(self._blocked, path=path) from refused
        return Origin(url, target, policy, self._resolver, path, self._blocked)


@dataclass(frozen=True)
class Origin:
    """A vetted URL. `policy` admits this one origin, at its public addresses and those that the allowlist opens;
    `blocked` is the message where it leads to another.
    """

    url: str
    target: ssrfguard.Target
    policy: ssrfguard.Policy
    resolver: Resolver | None
    path: str
    blocked: str

    @property
    def host_header(self) -> str:
        host = f"[{self.target.host}]" if ":" in self.target.host else self.target.host
        return host if self.target.port == _DEFAULT_PORTS[self.target.scheme] else f"{host}:{self.target.port}"

    @property
    def request_path(self) -> str:
        parts = urlsplit(self.url)
        return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    def resolve(self) -> tuple[ssrfguard.Address, ...]:
        """The vetted addresses of the host. Raises as `connect` does, whose limits it shares."""
        try:
            return ssrfguard.resolve(self.target, policy=self.policy, resolver=self.resolver)
        except ssrfguard.SSRFGuardError as refused:
            raise InputBlocked(self.blocked, path=self.path) from refused

    def connect(self, timeout_s: float) -> socket.socket:
        """A socket to a vetted address, TLS done. Raises InputBlocked, or whatever the network raises.

        The name lookup obeys no limit: call this in a thread that may be left behind.
        """
        try:
            addresses = self.resolve()
            # Half of the time for each address: one that swallows packets leaves time for the next.
            plain = ssrfguard.connect(addresses, policy=self.policy, timeout=timeout_s / 2)
        except ssrfguard.SSRFGuardError as refused:
            raise InputBlocked(self.blocked, path=self.path) from refused
        if self.target.scheme == "http":
            return plain
        try:
            plain.settimeout(timeout_s)
            return tls().wrap_socket(plain, server_hostname=self.target.host.rstrip("."))
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
def tls() -> ssl.SSLContext:
    """The system's certificate authorities (and those of SSL_CERT_FILE), with certifi's for images that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _opened(opening: Opening, target: ssrfguard.Target) -> tuple[Network, ...]:
    """The networks that an entry of the allowlist opens for `target`."""
    if opening.port is not None and opening.port != target.port:
        return ()
    if opening.network is not None:
        return (opening.network,)
    return _EVERYWHERE if target.host.rstrip(".") == opening.host else ()


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
