"""The grammar of PRIVATE_URL_ALLOWLIST, whose entries open exactly what they name.

minio.internal         the name, on every port, wherever it points
minio.internal:9000    the name, on that port
10.0.0.0/8, fd00::/8   addresses of that network, on every port, by whatever name
127.0.0.1, [::1]       that address, on every port
127.0.0.1:8080         that address, on that port; IPv6: [::1]:8080
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

import ssrfguard

Network = IPv4Network | IPv6Network

_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*\.?")
_WITH_PORT = re.compile(r"(?P<place>[^:]+|\[[^\]]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Opening:
    """What one entry opens: `host` (in lower case) or `network` is set; `port` None means every port."""

    host: str | None
    network: Network | None
    port: int | None


def parse(entry: str) -> Opening:
    """What an entry opens. Raises ValueError for a text that is no host, host:port, address or CIDR."""
    place, port = entry.strip().lower(), None
    if found := _WITH_PORT.fullmatch(place):
        place, port = found["place"], int(found["port"])
        if not 0 < port < 65_536:
            raise ValueError(f"{entry!r} has no usable port")
    network = _network(place)
    if network is None and not _HOST.fullmatch(place):
        raise ValueError(f"{entry!r} is no host, host:port or CIDR")
    return Opening(place.rstrip(".") if network is None else None, network, port)


def _network(place: str) -> Network | None:
    """None for what can only be a host. Raises ValueError for an IPv6 prefix that carries IPv4 addresses."""
    in_brackets = place.startswith("[") and place.endswith("]")
    try:
        network = ip_network(place[1:-1] if in_brackets else place, strict=False)
    except ValueError:
        return None
    if in_brackets and (network.version == 4 or "/" in place):
        return None
    # Such a prefix would open whatever address it carries, loopback included.
    ssrfguard.Policy(allowed_networks=(network,))
    return network
