"""Adapt the library requests: an adapter with our connection pools, and a cookie jar.

This is the only module that overrides or calls internals of requests. A contract test
(``tests/test_library_contracts.py``) fails when a release of requests changes them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import (
    RequestsCookieJar,
    extract_cookies_to_jar,
    get_cookie_header,
)
from requests.utils import get_environ_proxies, select_proxy

from dlpool.config import NetworkSettings
from dlpool.transfer.http.header_fields import HeaderFields
from dlpool.transfer.http.idle_connections import MAX_HOSTS
from dlpool.transfer.http.tls import tls_context
from dlpool.transfer.http.urls import basic_auth, split_credentials

MAX_COOKIE_LENGTH = 8 * 1024  # with attributes; browsers take 4096 (RFC 6265, 6.1)
MAX_COOKIES = 200  # kept for one download


class ProxyPools(HTTPAdapter):
    """An adapter of the library ``requests``, used only for the pools of proxies."""

    def __init__(
        self,
        settings: NetworkSettings,
        pool_size: int,
        classes: dict[str, type[urllib3.HTTPConnectionPool]],
        origin_context: Callable[[], ssl.SSLContext],
    ) -> None:
        """Prepare the pools.

        ``classes``: the classes of the pools by scheme. ``origin_context`` returns the
        TLS context of connections to an origin through a proxy.
        """
        self._settings = settings
        self._pool_classes = classes
        self._origin_context = origin_context
        super().__init__(pool_connections=MAX_HOSTS, pool_maxsize=pool_size)

    def pool(self, url: str, proxy: str) -> urllib3.HTTPConnectionPool:
        """Return the pool of connections to ``proxy`` for requests of ``url``."""
        prepared = requests.PreparedRequest()
        prepared.url = url
        return self.get_connection_with_tls_context(
            prepared, verify=True, proxies={"all": proxy}
        )

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        if proxy.lower().startswith("https:") and proxy not in self.proxy_manager:
            # The client certificate and ``insecure`` apply to the origin only.
            context = tls_context(
                replace(self._settings, cert=None, key=None, insecure=False)
            )
            proxy_kwargs = {"proxy_ssl_context": context, **proxy_kwargs}
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        manager.pool_classes_by_scheme = self._pool_classes
        return manager

    def proxy_headers(self, proxy: str) -> dict[str, str]:
        """Return ``Proxy-Authorization`` for the credentials in a proxy URL."""
        user = split_credentials(f"{proxy.rstrip('/')}/")[1]
        return {} if user is None else {"Proxy-Authorization": basic_auth(*user)}

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = urlsplit(request.url or "")
        host = {"scheme": str(parts.scheme), "host": parts.hostname, "port": parts.port}
        is_tls = parts.scheme == "https"
        return host, {"ssl_context": self._origin_context()} if is_tls else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context verifies certificates."""


def environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for ``url``, or None."""
    return select_proxy(url, get_environ_proxies(url))


class CookieJar:
    """The cookies that servers set during one download. Not thread-safe."""

    def __init__(self) -> None:
        self._jar = RequestsCookieJar()

    def __len__(self) -> int:
        return len(self._jar)

    def header(self, url: str) -> str | None:
        """Return the ``Cookie`` value for a request of ``url``.

        None if no cookie of the jar is for this URL.
        """
        return get_cookie_header(self._jar, _cookie_request(url))

    def store(self, url: str, values: Sequence[str]) -> None:
        """Store the ``Set-Cookie`` values of a response from ``url``.

        Does nothing if the jar has ``MAX_COOKIES`` cookies or more.
        """
        if len(self._jar) < MAX_COOKIES:
            response = _cookie_response(values)
            extract_cookies_to_jar(self._jar, _cookie_request(url), response)


def _cookie_response(values: Sequence[str]) -> Any:
    """Return a stand-in for a response, from which http.cookiejar reads the cookies.

    ``values``: the ``Set-Cookie`` values. ``Set-Cookie2`` is dropped: it is obsolete
    (RFC 6265 section 9.4), and http.cookiejar parses it in quadratic time.
    """
    kept = [
        ("Set-Cookie", value)
        for value in values[:MAX_COOKIES]
        if len(value) <= MAX_COOKIE_LENGTH
    ]
    return SimpleNamespace(_original_response=SimpleNamespace(msg=HeaderFields(kept)))


def _cookie_request(url: str) -> Any:
    """Return a stand-in for a request, from which http.cookiejar reads the URL.

    A PreparedRequest is not used, because it would rewrite the URL.
    """
    return SimpleNamespace(url=url, headers={})
