"""The connection pools of urllib3, for TLS and proxies.

Imported when a connection over TLS or to a proxy is opened: the import of urllib3 takes
longer than the fetch of a small file.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

import urllib3

from dlpool.config import NetworkSettings
from dlpool.transfer.http.cancellable import PooledResponse, TargetedHeaders
from dlpool.transfer.http.exchange import OutgoingBody
from dlpool.transfer.http.idle_connections import MAX_HOSTS, IdleCloser
from dlpool.transfer.http.policy import NetworkPolicy, origin
from dlpool.transfer.http.tls import tls_context
from dlpool.transfer.http.urllib3_adapter import ExpiringPool, pool_classes
from dlpool.transfer.http.urls import request_target

if TYPE_CHECKING:
    from dlpool.transfer.http.requests_adapter import ProxyPools


class RequestTarget(NamedTuple):
    """The target of a request (RFC 9112 section 3.2), and the URL for urllib3.

    ``target`` is sent. ``route`` is the URL from which urllib3 decides whether to open
    a tunnel through the proxy.
    """

    route: str
    target: str


class ConnectionPools:
    """Connection pools by host, with our connection classes and one TLS context.

    Thread-safe; the lock guards the creation of the TLS context and of the pools of
    proxies.
    """

    def __init__(
        self, settings: NetworkSettings, pool_size: int, idle_closer: IdleCloser
    ) -> None:
        """Prepare the pools; each keeps at most ``pool_size`` idle connections."""
        self._settings = settings
        self._pool_size = pool_size
        self._classes = pool_classes(NetworkPolicy.of(settings), idle_closer)
        self._manager = urllib3.PoolManager(MAX_HOSTS, maxsize=pool_size)
        self._manager.pool_classes_by_scheme = self._classes
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._proxies: ProxyPools | None = None
        self._pools: dict[tuple[str, str, int | None], urllib3.HTTPConnectionPool] = {}
        self._timeout = urllib3.Timeout(
            connect=settings.connect_timeout, read=settings.read_timeout
        )

    def send(
        self,
        method: str,
        url: str,
        proxy: str | None,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> PooledResponse:
        """Send a request and return its response with the body unread.

        Raises DlpoolError and the exceptions of ``library_errors``. Does not use
        ``requests.Session.send``, which takes as long as the transfer of a small file.
        """
        pool, request = self.route(url, proxy)
        targeted = TargetedHeaders(request.target, headers)
        if body is None:
            again = cast(ExpiringPool, pool).send_again(
                method, targeted, self._settings.read_timeout
            )
            if again is not None:
                return again
        raw: Any = pool.urlopen(
            method,
            request.route,
            body=cast(Any, body),
            headers=targeted,
            redirect=False,
            retries=False,
            assert_same_host=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )
        return cast(PooledResponse, raw)

    def preconnect(self, url: str) -> Callable[[], None]:
        """Return a function that opens an idle connection without a proxy."""
        pool = cast(ExpiringPool, self._direct(url))
        return pool.preconnect(self._settings.connect_timeout)

    def route(
        self, url: str, proxy: str | None
    ) -> tuple[urllib3.HTTPConnectionPool, RequestTarget]:
        """Return the pool of the URL's host or of ``proxy``, and the request target."""
        target = request_target(url)
        if proxy is None:
            return self._direct(url), RequestTarget("/", target)
        pool = self._proxy_pools().pool(url, proxy)
        if url.startswith("https:"):
            return pool, RequestTarget("/", target)
        return pool, RequestTarget(url[: -len(target)] + "/", url)

    def close(self) -> None:
        """Close the idle connections."""
        pools, self._pools = self._pools, {}
        self._manager.clear()
        for pool in pools.values():
            # the manager closes a pool only when nothing refers to it
            pool.close()
        if self._proxies is not None:
            self._proxies.close()

    def _direct(self, url: str) -> urllib3.HTTPConnectionPool:
        """Return the pool of the URL's host, cached: urllib3's look-up is slow."""
        key = origin(url)
        pool = self._pools.get(key)
        if pool is None or pool.pool is None:
            # closed when requests to many other hosts replaced it
            parts = urlsplit(url)
            keys: dict[str, Any] = (
                {"ssl_context": self._tls_context()} if parts.scheme == "https" else {}
            )
            pool = self._manager.connection_from_host(
                parts.hostname, parts.port, parts.scheme, pool_kwargs=keys
            )
            if len(self._pools) >= MAX_HOSTS:
                self._pools = {}
            self._pools[key] = pool
        return pool

    def _tls_context(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = tls_context(self._settings)
            return self._context

    def _proxy_pools(self) -> ProxyPools:
        # imports requests, which only proxies and cookies need
        from dlpool.transfer.http.requests_adapter import ProxyPools

        with self._lock:
            if self._proxies is None:
                self._proxies = ProxyPools(
                    self._settings, self._pool_size, self._classes, self._tls_context
                )
            return self._proxies
