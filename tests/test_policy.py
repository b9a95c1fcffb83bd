"""Which addresses may be connected to, and which headers go where."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import PolicyRefused
from dlpool.transfer.policy import check_address, headers_for, origin

METADATA = [
    "169.254.169.254", "169.254.170.2", "169.254.0.1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200",
    "168.63.129.16", "192.0.0.192",
]  # fmt: skip
DISGUISED = ["::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1"]
PRIVATE = [
    "127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "0.0.0.0", "198.18.0.1",
    "240.0.0.1", "255.255.255.255", "::1", "::", "fc00::1", "fd12::1", "2001:db8::1", "::ffff:127.0.0.1",
    "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:0a00:0001::1",
]  # fmt: skip
MULTICAST = ["224.0.0.1", "239.1.2.3", "ff02::1", "ff0e::1"]
PUBLIC = ["1.1.1.1", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]


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
        str(ipaddress.IPv6Address((0x2002 << 112) + (int(address) << 80))),
    ]
    assert {is_refused(text, policy) for text in disguises} == {is_refused(str(address), policy)}


def is_refused(address: str, policy: str) -> bool:
    try:
        check_address(address, policy)
    except PolicyRefused:
        return True
    return False


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
    "Authorization": "secret", "Cookie": "secret", "X-Api-Key": "secret", "Proxy-Authorization": "secret",
    "Referer": "secret", "ACCEPT": "text/html", "User-Agent": "me", "accept-language": "de",
    "Cache-Control": "no-cache", "Pragma": "no-cache",
}  # fmt: skip


def test_all_headers_go_to_the_origin_they_were_meant_for() -> None:
    assert headers_for("http://host:80/other", "http://host/file", HEADERS) == HEADERS


@pytest.mark.parametrize("url", ["http://other/file", "https://host/file", "http://host:8080/file"])
def test_only_harmless_headers_go_to_another_origin(url: str) -> None:
    sent = headers_for(url, "http://host/file", HEADERS)
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
