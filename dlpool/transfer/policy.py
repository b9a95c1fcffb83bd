"""Which addresses may be connected to, and which headers may go where. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from dlpool.errors import PolicyRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Services that hand out credentials to whoever asks from inside a cloud; link-local ones are refused as such.
_METADATA = [
    ipaddress.ip_network(text)
    for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::/32", "fd20:ce::/64")
]
# IPv6 networks whose addresses hold an IPv4 one in their last 32 bits: NAT64 (RFC 6052, 8215), IPv4-compatible ones.
_EMBEDDING = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]

# Of the headers that a user adds, only these follow a redirect to another origin.
_HARMLESS = {"accept", "accept-language", "cache-control", "pragma", "user-agent"}


def check_address(text: str, policy: str) -> None:
    """Raise PolicyRefused if the network policy (``any``, ``no-metadata``, ``public-only``) forbids this address."""
    address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
    if policy == "any":
        return
    if address.is_link_local or any(address in network for network in _METADATA):
        raise PolicyRefused(f"{text} is a link-local or cloud metadata address, which network = {policy} refuses")
    if policy == "public-only" and (not address.is_global or address.is_multicast):
        raise PolicyRefused(f"{text} is not a public address, and network = public-only")


@lru_cache(maxsize=256)
def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of a URL (RFC 6454), with the scheme's default port filled in."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def headers_for(url: str, first_url: str, headers: Mapping[str, str]) -> dict[str, str]:
    """The user's headers that may be sent to ``url``: all to the origin they were meant for, else harmless ones."""
    if origin(url) == origin(first_url):
        return dict(headers)
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def _embedded(address: Address) -> Address:
    """The IPv4 address inside an IPv6 one (mapped, 6to4, NAT64), which is where the packets go."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped or address.sixtofour:
            return address.ipv4_mapped or address.sixtofour or address
        if any(address in network for network in _EMBEDDING) and int(address) > 1:  # ::1 is itself
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address
