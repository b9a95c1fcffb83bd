"""Adapt the library requests: an adapter with our connection pools, and a cookie jar.

This is the only module that overrides or calls internals of requests. A contract test
(``tests/test_library_contracts.py``) fails when a release of requests changes them.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.cookies import (
    RequestsCookieJar,
    extract_cookies_to_jar,
    get_cookie_header,
)
from requests.utils import select_proxy

from dlpool.config import NetworkSettings
from dlpool.transfer.http.header_fields import HeaderFields
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.policy import NetworkPolicy, origin
from dlpool.transfer.http.tls import tls_context
from dlpool.transfer.http.urllib3_adapter import pool_classes
from dlpool.transfer.http.urls import basic_auth, request_target, split_credentials

MAX_HOSTS = 64  # hosts with idle connections
MAX_COOKIE_LENGTH = 8 * 1024  # with attributes; browsers take 4096 (RFC 6265, 6.1)
MAX_COOKIES = 200  # kept for one download


class RequestTarget(NamedTuple):
    """The target of a request (RFC 9112 section 3.2), and the URL for urllib3.

    ``target`` is sent. ``route`` is the URL from which urllib3 decides whether to open
    a tunnel through the proxy.
    """

    route: str
    target: str


class PoolAdapter(HTTPAdapter):
    """An adapter for the library requests: our connection classes, one TLS context."""

    def __init__(
        self, settings: NetworkSettings, pool_size: int, idle_closer: IdleCloser
    ) -> None:
        self._settings = settings
        self._pool_classes = pool_classes(NetworkPolicy.of(settings), idle_closer)
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._pools: dict[tuple[str, str, int | None], urllib3.HTTPConnectionPool] = {}
        super().__init__(pool_connections=MAX_HOSTS, pool_maxsize=pool_size)

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes

    def close(self) -> None:
        super().close()
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            # super() closes a pool only when nothing refers to it
            pool.close()

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

    def route(
        self, url: str, proxies: Mapping[str, str]
    ) -> tuple[urllib3.HTTPConnectionPool, RequestTarget]:
        """Return the pool for a URL (its host's or its proxy's), and the target."""
        prepared = requests.PreparedRequest()
        prepared.url = url
        if not proxies:
            return self._direct(prepared), RequestTarget("/", request_target(url))
        pool = self.get_connection_with_tls_context(
            prepared, verify=True, proxies=dict(proxies)
        )
        if url.startswith("https:") or select_proxy(url, dict(proxies)) is None:
            return pool, RequestTarget("/", request_target(url))
        return pool, RequestTarget(url[: -len(request_target(url))] + "/", url)

    def _direct(self, request: requests.PreparedRequest) -> urllib3.HTTPConnectionPool:
        """Return the pool of the request's host from a cache.

        The cache avoids the look-up of urllib3, which is slow.
        """
        key = origin(request.url or "")
        pool = self._pools.get(key)
        if pool is None or pool.pool is None:
            # closed when requests to many other hosts replaced it
            host, keys = self.build_connection_pool_key_attributes(request, verify=True)
            pool = self.poolmanager.connection_from_host(**host, pool_kwargs=keys)
            if len(self._pools) >= MAX_HOSTS:
                self._pools = {}
            self._pools[key] = pool
        return pool

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = urlsplit(request.url or "")
        host = {"scheme": str(parts.scheme), "host": parts.hostname, "port": parts.port}
        return host, {"ssl_context": self._tls()} if parts.scheme == "https" else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Do nothing: the TLS context verifies certificates."""

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = tls_context(self._settings)
            return self._context


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
        """Store the ``Set-Cookie`` values of a response from ``url``."""
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
