"""Which addresses may be connected to, and which headers may be sent to which origin.

Pure. This module lists the networks of the IANA registries of special-purpose addresses
(RFC 6890). It does not use the properties of ``ipaddress``: the addresses that
``is_global`` accepts differ between Python versions, and ``ipaddress`` ignores IPv6
forms of IPv4 addresses.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from dlpool.config import NetworkSettings
from dlpool.config.web import parse_networks
from dlpool.dataclass import dataclass
from dlpool.errors import PolicyRefused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Services that give credentials to every client inside a cloud, and link-local
# addresses, where most of them are.
_METADATA = parse_networks(
    "100.100.100.200, 168.63.129.16, 192.0.0.192, fd00:ec2::/32, fd20:ce::/64, "
    "fd00:42::/32, fd00:c1::/32, "
    "fd00:a9fe:a9fe::/48, 169.254.0.0/16, fe80::/10"
)
_NOT_PUBLIC_V4 = parse_networks(
    "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, "
    "192.0.0.0/24, 192.0.2.0/24, "
    "192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, "
    "224.0.0.0/4, 240.0.0.0/4"
)
# all global unicast addresses that have been assigned
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = parse_networks("2001::/23, 2001:db8::/32, 3fff::/20")

# IPv6 networks whose addresses contain an IPv4 address, and the number of bits that
# follow the IPv4 address: IPv4-compatible and mapped (RFC 4291), translated (RFC 2765),
# NAT64 (RFC 6052), 6to4 (RFC 3056).
_CARRIERS = tuple(
    (ipaddress.IPv6Network(text), shift)
    for text, shift in (
        ("::/96", 0),
        ("::ffff:0:0/96", 0),
        ("::ffff:0:0:0/96", 0),
        ("64:ff9b::/96", 0),
        ("2002::/16", 80),
    )
)
_TEREDO = ipaddress.IPv6Network("2001::/32")  # RFC 4380
_LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
# RFC 5214: the upper half of an interface id, but for its universal bit
_ISATAP, _ISATAP_MASK = 0x00005EFE, 0xFDFFFFFF

# The only headers of the user that follow a redirect to another origin.
_HARMLESS = {"accept", "accept-language", "cache-control", "pragma", "user-agent"}


@dataclass(frozen=True)
class NetworkPolicy:
    """A network policy: ``name`` is ``any``, ``no-metadata`` or ``public-only``.

    ``allow`` lists exempted networks.
    """

    name: str
    allow: tuple[Network, ...] = ()

    @classmethod
    def of(cls, settings: NetworkSettings) -> NetworkPolicy:
        """Return the policy of these settings."""
        return _policy(settings.network, settings.network_allow)

    def check(self, text: str) -> None:
        """Raise PolicyRefused if the address ``text`` is forbidden.

        Raises ValueError if ``text`` is not an IP address.
        """
        address = ipaddress.ip_address(text.partition("%")[0])
        if self.name == "any":
            return
        routed = tuple(_routed_addresses(address))
        if any(
            _special_network(one) and not self._allows(one)
            for one in (*routed, *_embedded_addresses(address))
        ):
            raise PolicyRefused(
                f"{text} is a link-local or cloud metadata address, which network = "
                f"{self.name} refuses"
            )
        if self.name == "public-only" and not all(
            _is_public(one) or self._allows(one) for one in routed
        ):
            raise PolicyRefused(
                f"{text} is not a public address, and network = public-only: name its "
                f"network in network_allow "
                "if it may be connected to"
            )

    def _allows(self, address: Address) -> bool:
        """Return whether a network of ``allow`` contains the address.

        For a link-local or metadata address, this network must lie completely within
        the link-local or metadata network.
        """
        named = [network for network in self.allow if address in network]
        network_found = _special_network(address)
        return (
            bool(named)
            if network_found is None
            else any(_is_within(one, network_found) for one in named)
        )


ANY_NETWORK = NetworkPolicy("any")


def check_address(text: str, policy: str, allow: tuple[Network, ...] = ()) -> None:
    """Raise PolicyRefused if the policy forbids the address ``text``.

    Raises ValueError if ``text`` is not an IP address.
    """
    NetworkPolicy(policy, allow).check(text)


@lru_cache(maxsize=64)
def _policy(name: str, allow: str | None) -> NetworkPolicy:
    return NetworkPolicy(name, parse_networks(allow))


def origin(url: str) -> tuple[str, str, int | None]:
    """Return scheme, host and port of a URL (RFC 6454).

    For a URL without a port, returns the default port of its scheme.
    """
    end = url.find("/", len("https://"))  # the path has no part in the origin
    return _origin(url if end < 0 else url[:end])


@lru_cache(maxsize=256)
def _origin(site: str) -> tuple[str, str, int | None]:
    parts = urlsplit(site)
    return (
        parts.scheme,
        (parts.hostname or "").lower(),
        parts.port or {"http": 80, "https": 443}.get(parts.scheme),
    )


def headers_for_origin(
    url: str, first_url: str, headers: Mapping[str, str]
) -> dict[str, str]:
    """Return the user's headers that may be sent to ``url``.

    The origin of ``first_url`` gets all headers, another origin only harmless ones.
    """
    if origin(url) == origin(first_url):
        return dict(headers)
    return {name: value for name, value in headers.items() if name.lower() in _HARMLESS}


def _routed_addresses(address: Address) -> Iterator[Address]:
    """Yield the addresses that packets to ``address`` go to.

    For an IPv6 address that stands for an IPv4 address, yields only the IPv4 address.
    For an ISATAP address, yields its IPv4 address and the address itself. For any
    other address, yields the address itself.
    """
    if isinstance(address, ipaddress.IPv6Address):
        number = int(address)
        for network, shift in _CARRIERS:
            if address in network and number > 1:  # :: and ::1 are themselves
                yield _ipv4(number >> shift)
                return
        if number >> 32 & _ISATAP_MASK == _ISATAP:
            yield _ipv4(number)
    yield address


def _embedded_addresses(address: Address) -> Iterator[Address]:
    """Yield the IPv4 addresses that a non-public IPv6 address may stand for."""
    if not isinstance(address, ipaddress.IPv6Address):
        return
    number = int(address)
    if address in _TEREDO:  # the server, and the client behind its NAT
        yield _ipv4(number >> 64)
        yield _ipv4(~number)
    elif address in _LOCAL_NAT64:
        # RFC 6052 section 2.2: after a prefix of 96, 64, 56 or 48 bits, without the
        # bits 64 to 71
        yield _ipv4(number)
        yield _ipv4(number >> 24)
        yield _ipv4((number >> 64 & 0xFF) << 24 | number >> 32 & 0xFFFFFF)
        yield _ipv4((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)


def _ipv4(number: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(number & 0xFFFFFFFF)


def _special_network(address: Address) -> Network | None:
    """Return the metadata or link-local network that contains the address, or None."""
    return next((network for network in _METADATA if address in network), None)


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    return address in _PUBLIC_V6 and not any(
        address in network for network in _NOT_PUBLIC_V6
    )


def _is_within(network: Network, outer: Network) -> bool:
    """Return whether ``outer`` contains all of ``network``.

    The two networks must overlap.
    """
    return network.prefixlen >= outer.prefixlen
