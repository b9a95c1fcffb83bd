"""Whose word counts for a client's address: that of nobody, unless the settings name a proxy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import falcon
import pytest
from falcon.testing import create_req

from dlpool.config import WebSettings
from dlpool.web.errors import HttpError
from dlpool.web.middleware import AccessMiddleware

ADMITTED: list[str] = []


class Scraped:
    """A resource that the addresses of ``scrape_from`` may read without a token."""

    access = "scrape"


def keys() -> Any:
    def caller(*_: object) -> None:
        raise HttpError(401, "unauthorized", "no token")

    return SimpleNamespace(is_required=True, authenticate=caller)


def asked(peer: str, headers: dict[str, str], **settings: str) -> tuple[str, bool]:
    """The address that a request counts for, and whether it may read the metrics without a token."""
    web = WebSettings(**settings)  # type: ignore[arg-type]
    parts: Any = SimpleNamespace(
        settings=SimpleNamespace(web=web),
        authenticator=keys(),
        client_limits=SimpleNamespace(check_rate=ADMITTED.append),
    )
    gate, req = (
        AccessMiddleware(parts),
        create_req(headers={"Host": "localhost", **headers}, remote_addr=peer, path="/metrics"),
    )
    gate.process_request(req, falcon.Response())
    try:
        gate.process_resource(req, falcon.Response(), Scraped(), {})
    except HttpError:
        return req.context.address, False
    return req.context.address, True


def test_no_proxy_is_trusted_by_default() -> None:
    assert WebSettings().trusted_proxies == ""


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "192.0.2.7"])
@pytest.mark.parametrize("hops", ["198.51.100.1", "127.0.0.1", "::1", "198.51.100.1, 127.0.0.1", ",", "x" * 9000])
def test_nobody_says_whose_address_he_has(peer: str, hops: str) -> None:
    assert asked(peer, {"X-Forwarded-For": hops})[0] == peer


@pytest.mark.parametrize(
    ("peer", "hops", "address"),
    [
        ("10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "127.0.0.1, 198.51.100.1", "198.51.100.1"),
        ("10.0.0.2", "198.51.100.1, 10.0.0.3", "198.51.100.1"),
        ("10.0.0.2", "", "10.0.0.2"),
        ("192.0.2.7", "198.51.100.1", "192.0.2.7"),
        ("::ffff:10.0.0.2", "198.51.100.1", "198.51.100.1"),
        ("127.0.0.1", "198.51.100.1", "127.0.0.1"),
    ],
)
def test_a_trusted_proxy_does(peer: str, hops: str, address: str) -> None:
    assert asked(peer, {"X-Forwarded-For": hops}, trusted_proxies="10.0.0.0/24")[0] == address


@pytest.mark.parametrize(
    ("peer", "headers", "trusted", "is_open"),
    [
        ("127.0.0.1", {}, "", True),
        ("::1", {}, "", True),
        ("192.0.2.7", {}, "", False),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, "", False),
        ("127.0.0.1", {"Forwarded": "for=192.0.2.7"}, "", False),
        ("127.0.0.1", {"X-Real-IP": "192.0.2.7"}, "", False),
        ("127.0.0.1", {"Via": "1.1 proxy"}, "", False),
        ("127.0.0.1", {"X-Forwarded-Proto": "https"}, "", False),
        ("127.0.0.1", {"X-Forwarded-Host": "h"}, "", False),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, "", False),
        ("127.0.0.1", {"X-Forwarded-For": "192.0.2.7"}, "127.0.0.1", False),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, "127.0.0.1", True),
        ("127.0.0.1", {}, "127.0.0.1", True),
        ("127.0.0.1", {"X-Real-IP": "192.0.2.7"}, "127.0.0.1", False),
    ],
)
def test_a_proxy_that_is_not_trusted_opens_the_metrics_to_nobody(
    peer: str, headers: dict[str, str], trusted: str, is_open: bool
) -> None:
    """Its own address may be one that needs no token; its clients are others."""
    assert asked(peer, headers, trusted_proxies=trusted)[1] is is_open
