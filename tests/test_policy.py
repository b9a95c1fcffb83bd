"""Which addresses may be connected to, and which headers go where."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import NetworkSettings
from dlpool.config.web import parse_networks
from dlpool.errors import PolicyRefused
from dlpool.transfer.http.policy import check_address, headers_for_origin, origin
from dlpool.transfer.http.urls import check_proxied_host

METADATA = [
    "169.254.169.254",
    "169.254.170.2",
    "169.254.42.42",
    "169.254.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fe80::a9fe:a9fe",
    "febf::1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:42::42",
    "fd00:c1::a9fe:a9fe",
    "fd00:a9fe:a9fe::1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
]
DISGUISED = [
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::ffff:0:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:0:a9:fea9:fe00:0",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001::5601:5601",
    "2606:4700::5efe:169.254.169.254",
    "fd12::200:5efe:169.254.169.254",
    "::ffff:100.100.100.200",
]
PRIVATE = [
    "127.0.0.1",
    "127.1.2.3",
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "198.18.0.1",
    "198.19.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fc00::1",
    "fd12::1",
    "fec0::1",
    "feff::1",
    "2001:db8::1",
    "3fff::1",
    "100::1",
    "100:0:0:1::1",
    "5f00::1",
    "2001:2::1",
    "2001:10::1",
    "2001:0:808:808::f7f7:f7f7",
    "64:ff9b:1::8.8.8.8",
    "200::1",
    "4000::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:0:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "::10.0.0.1",
    "::127.0.0.1",
    "::7f00:1",
    "64:ff9b::10.0.0.1",
    "2002:0a00:0001::1",
    "2002:7f00:1::",
    "2606:4700::5efe:10.0.0.1",
    "2606:4700::200:5efe:192.168.0.1",
]
MULTICAST = ["224.0.0.1", "239.1.2.3", "ff02::1", "ff0e::1", "::ffff:224.0.0.1"]
PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "192.0.1.1",
    "198.17.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2000::1",
    "2001:200::1",
    "3ffe::1",
    "::ffff:1.1.1.1",
    "::ffff:0:1.1.1.1",
    "::1.1.1.1",
    "64:ff9b::1.1.1.1",
    "2002:101:101::1",
    "2606:4700::5efe:1.1.1.1",
]


@pytest.mark.parametrize("address", METADATA + DISGUISED)
@pytest.mark.parametrize("policy", ["no-metadata", "public-only"])
def test_metadata_and_link_local_addresses_are_refused(address: str, policy: str) -> None:
    with pytest.raises(PolicyRefused, match=f"network = {policy}"):
        check_address(address, policy)


@pytest.mark.parametrize("address", PRIVATE + MULTICAST)
def test_only_public_addresses_pass_public_only(address: str) -> None:
    with pytest.raises(PolicyRefused, match="not a public address"):
        check_address(address, "public-only")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_pass_no_metadata(address: str) -> None:
    check_address(address, "no-metadata")


@pytest.mark.parametrize("policy", ["any", "no-metadata", "public-only"])
@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass_every_policy(address: str, policy: str) -> None:
    check_address(address, policy)


@pytest.mark.parametrize("address", METADATA + DISGUISED + PRIVATE + MULTICAST)
def test_any_lets_everything_pass(address: str) -> None:
    check_address(address, "any")


V4_NETWORKS = [
    "0.0.0.0/0",
    "169.254.0.0/16",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "100.100.100.200",
    "168.63.129.16",
    "224.0.0.0/4",
]
V4 = st.sampled_from(V4_NETWORKS).flatmap(lambda network: st.ip_addresses(network=network))


@given(V4, st.sampled_from(["no-metadata", "public-only"]))
def test_an_address_within_an_ipv6_one_is_judged_alike(address: ipaddress.IPv4Address, policy: str) -> None:
    disguises = [
        f"::ffff:{address}",
        f"64:ff9b::{address}",
        f"::ffff:0:{address}",
        str(ipaddress.IPv6Address((0x2002 << 112) + (int(address) << 80))),
    ]
    assert {is_refused(text, policy) for text in disguises} == {is_refused(str(address), policy)}


def is_refused(address: str, policy: str, allow: str = "") -> bool:
    try:
        check_address(address, policy, parse_networks(allow))
    except PolicyRefused:
        return True
    return False


# --- what is allowed besides ---


@pytest.mark.parametrize("policy", ["no-metadata", "public-only"])
@pytest.mark.parametrize(
    ("allow", "address"),
    [
        ("10.0.0.0/8", "10.1.2.3"),
        ("10.0.0.0/8", "::ffff:10.1.2.3"),
        ("10.0.0.0/8", "::ffff:0:10.1.2.3"),
        ("10.0.0.0/8", "2002:a01:203::1"),
        ("10.0.0.0/8", "2606:4700::5efe:10.1.2.3"),
        ("192.168.1.7", "192.168.1.7"),
        ("fd12::/16, 10.0.0.0/8", "fd12:3::4"),
        ("127.0.0.0/8,::1", "::1"),
        ("127.0.0.0/8,::1", "127.0.0.1"),
        ("0.0.0.0/0", "192.168.0.1"),
        ("fec0::/10", "fec0::1"),
        ("64:ff9b:1::/48", "64:ff9b:1::10.0.0.1"),
        ("169.254.169.254", "169.254.169.254"),
        ("169.254.0.0/16", "169.254.1.1"),
        ("fe80::/64", "fe80::1%eth0"),
        ("fd00:42::42", "fd00:42::42"),
        ("100.100.100.200/32", "::ffff:100.100.100.200"),
    ],
)
def test_an_allowed_network_may_be_connected_to(allow: str, address: str, policy: str) -> None:
    assert not is_refused(address, policy, allow)


@pytest.mark.parametrize(
    ("allow", "address"),
    [
        ("", "10.0.0.1"),
        ("10.0.0.0/9", "10.128.0.1"),
        ("10.0.0.0/8", "192.168.0.1"),
        ("10.0.0.0/8", "::ffff:127.0.0.1"),
        ("fd00::/16", "fd01::1"),
        ("10.0.0.1", "2606:4700::5efe:10.0.0.2"),
        ("64:ff9b:1::/48", "64:ff9b:2::10.0.0.1"),
    ],
)
def test_nothing_else_may(allow: str, address: str) -> None:
    assert is_refused(address, "public-only", allow)


@pytest.mark.parametrize("policy", ["no-metadata", "public-only"])
@pytest.mark.parametrize(
    "allow", ["0.0.0.0/0,::/0", "100.64.0.0/10,fd00::/8,192.0.0.0/24,168.0.0.0/8,169.0.0.0/8,fe00::/7"]
)
@pytest.mark.parametrize("address", METADATA + DISGUISED)
def test_a_wide_network_lets_nobody_ask_for_credentials(address: str, allow: str, policy: str) -> None:
    """Only one that names such addresses and no others does."""
    assert is_refused(address, policy, allow)


@pytest.mark.parametrize("version", ["ipv4", "ipv6"])
def test_what_python_calls_global_does_not_matter(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lists differ from version to version."""
    address = {"ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address}[version]
    for name in ("is_global", "is_private", "is_reserved", "is_link_local", "is_multicast"):
        monkeypatch.setattr(address, name, property(lambda _: pytest.fail("Python was asked")))
    for text in METADATA + DISGUISED + PRIVATE + MULTICAST + PUBLIC:
        assert is_refused(text, "public-only") is (text not in PUBLIC)


PROXIED = [
    "http://localhost/",
    "http://LOCALHOST./f",
    "http://a.localhost/",
    "http://127.0.0.1/",
    "http://2130706433/",
    "http://0x7f.1/",
    "http://[::ffff:0:10.0.0.1]/",
    "http://[fec0::1]:80/",
    "http://0/",
]


@pytest.mark.parametrize("url", PROXIED)
def test_behind_a_proxy_the_address_in_a_url_counts(url: str) -> None:
    settings = NetworkSettings(network="public-only")
    with pytest.raises(PolicyRefused):
        check_proxied_host(url, settings)
    check_proxied_host(url, replace(settings, network="any"))
    check_proxied_host(url, replace(settings, network_allow="127.0.0.0/8, 10.0.0.0/8, fec0::/10, 0.0.0.0"))
    check_proxied_host("http://example.org/", settings)


# --- origins and headers ---


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host/a", "http://host/b?c#d"),
        ("http://host/", "http://host:80/"),
        ("https://host/", "https://host:443/"),
        ("http://host/", "HTTP://HOST/"),
        ("http://u:p@host/", "http://host/"),
        ("http://[::1]/", "http://[::1]:80/"),
    ],
)
def test_one_origin_has_many_urls(one: str, other: str) -> None:
    assert origin(one) == origin(other)


@pytest.mark.parametrize(
    "other",
    ["https://host/", "http://host:81/", "http://other/", "http://sub.host/", "http://host.evil/", "http://host@evil/"],
)
def test_scheme_host_and_port_make_the_origin(other: str) -> None:
    assert origin("http://host/") != origin(other)


HEADERS = {
    "Authorization": "secret",
    "Cookie": "secret",
    "X-Api-Key": "secret",
    "Proxy-Authorization": "secret",
    "Referer": "secret",
    "ACCEPT": "text/html",
    "User-Agent": "me",
    "accept-language": "de",
    "Cache-Control": "no-cache",
    "Pragma": "no-cache",
}


def test_all_headers_go_to_the_origin_they_were_meant_for() -> None:
    assert headers_for_origin("http://host:80/other", "http://host/file", HEADERS) == HEADERS


@pytest.mark.parametrize("url", ["http://other/file", "https://host/file", "http://host:8080/file"])
def test_only_harmless_headers_go_to_another_origin(url: str) -> None:
    sent = headers_for_origin(url, "http://host/file", HEADERS)
    assert set(sent) == {"ACCEPT", "User-Agent", "accept-language", "Cache-Control", "Pragma"}
    assert "secret" not in sent.values()


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("https://h/a", "https://h:443/b", True),
        ("http://h/a", "http://H:80/b", True),
        ("https://h/a", "https://h:444/b", False),
        ("http://h/a", "http://h:81/b", False),
        ("http://h:443/a", "https://h/b", False),
    ],
)
def test_an_origin_has_the_usual_port_of_its_scheme(one: str, other: str, is_same: bool) -> None:
    assert (origin(one) == origin(other)) is is_same


@pytest.mark.parametrize("address", ["::1", "::2", "::7f00:1", "64:ff9b::a00:1"])
def test_an_address_with_a_private_one_inside_is_not_public(address: str) -> None:
    with pytest.raises(PolicyRefused, match="not a public address"):
        check_address(address, "public-only")
