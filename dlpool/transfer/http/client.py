"""The HTTP client of a process: connection pools, proxies and TLS contexts."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dlpool.config import NetworkSettings
from dlpool.errors import ConfigurationError, DlpoolError
from dlpool.transfer.http.cancellable import PooledResponse, TargetedHeaders
from dlpool.transfer.http.direct_pool import DirectPools
from dlpool.transfer.http.exchange import OutgoingBody
from dlpool.transfer.http.host_connections import HostConnections
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit
from dlpool.transfer.http.network_errors import library_errors
from dlpool.transfer.http.policy import NetworkPolicy, origin
from dlpool.transfer.http.tls import tls_context
from dlpool.transfer.http.urls import display_url, request_headers, request_target
from dlpool.transfer.timer import TimerThread

if TYPE_CHECKING:
    from dlpool.transfer.http.pools import ConnectionPools

# bytes after which one read stops collecting what has arrived
MIN_READ_BYTES = 128 * 1024


class HttpClient:
    """Sends requests over the connection pools of a process.

    Thread-safe; all downloads share one client.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        pool_size: int,
        host_holds: HostHolds,
        network_monitor: NetworkMonitor,
        rate_limit: RateLimit | None = None,
        min_read_bytes: int = 0,
        max_idle_s: float | None = None,
    ) -> None:
        """Prepare the pools; no connection is opened.

        ``pool_size``: idle connections per host that are kept for reuse.
        ``rate_limit``: shared by all downloads; None means no limit.
        ``min_read_bytes``: bytes that a read collects before it returns, at least 128
        KiB; a read returns fewer if the data arrive slowly. ``max_idle_s``: seconds
        after which an idle connection is closed; None means the default.
        """
        self.settings = settings
        self.host_holds = host_holds
        self.network_monitor = network_monitor
        self.host_connections = HostConnections(time.monotonic)
        self.rate_limit = rate_limit or RateLimit(None, time.monotonic)
        self.min_read_bytes = max(min_read_bytes, MIN_READ_BYTES)
        self._idle_closer = IdleCloser(max_idle_s)
        self._pool_size = pool_size
        self._direct_pools = DirectPools(
            NetworkPolicy.of(settings), self._idle_closer, pool_size
        )
        self._lock = threading.Lock()  # guards the creation of the pools of urllib3
        self._pools: ConnectionPools | None = None
        self.timer = TimerThread()
        # limits of this machine that have been reported
        self.reported_limits: set[str] = set()
        # hosts whose latest file was worth one connection
        self.small_hosts: set[str] = set()
        self._proxies: dict[tuple[str, str, int | None], str | None] = {}

    @cached_property
    def default_headers(self) -> Mapping[str, str]:
        """The header fields of each request, without the fields that the user adds.

        Raises UsageError for a user agent that cannot be sent.
        """
        return request_headers(self.settings, {})

    def proxy(self, url: str) -> str | None:
        """Return the proxy for ``url``, None for a direct connection.

        The configured proxy takes precedence over the proxies in the environment.
        Raises ConfigurationError if the environment names an unusable proxy.
        """
        if self.settings.proxy:
            return self.settings.proxy
        key = origin(url)
        if key not in self._proxies:
            self._proxies[key] = _environment_proxy(url)
        return self._proxies[key]

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> PooledResponse:
        """Send a request and return its response with the body unread.

        Raises the exceptions of ``library_errors``, RetryRange, PolicyRefused or
        ConfigurationError.
        """
        proxy = self.proxy(url)
        pool = None if proxy else self._direct_pools.pool(url)
        if pool is None:
            return self._library_pools().send(method, url, proxy, headers, body)
        return pool.send(
            method,
            TargetedHeaders(request_target(url), headers),
            body,
            self.settings.connect_timeout,
            self.settings.read_timeout,
        )

    def preconnect(self, url: str, count: int) -> list[Callable[[], None]]:
        """Return functions that open ``count`` idle connections for ``url``.

        Each function may run on a thread of its own, and ignores failures: the next
        request has the same failure and reports it. The list is empty if a proxy is
        used.
        """
        if self.proxy(url) is not None:
            return []
        pool, timeout_s = self._direct_pools.pool(url), self.settings.connect_timeout
        return [
            partial(
                _try,
                pool.preconnect(timeout_s)
                if pool is not None
                else self._library_pools().preconnect(url),
            )
            for _ in range(count)
        ]

    def _library_pools(self) -> ConnectionPools:
        # imports urllib3, which a direct connection without TLS does not need
        from dlpool.transfer.http.pools import ConnectionPools

        with self._lock:
            if self._pools is None:
                self._pools = ConnectionPools(
                    self.settings, self._pool_size, self._idle_closer
                )
            return self._pools

    def check(self) -> None:
        """Raise ConfigurationError for an unusable proxy or certificate."""
        if self.settings.proxy:
            _check_proxy(self.settings.proxy)
        if self.settings.key and not self.settings.cert:
            raise ConfigurationError("key is given without cert")
        if self.settings.cacert or self.settings.cert:
            tls_context(self.settings)

    def close(self) -> None:
        """Close the idle connections."""
        self._idle_closer.close()
        self._direct_pools.close()
        if self._pools is not None:
            self._pools.close()


def _try(open_idle: Callable[[], None]) -> None:
    with suppress(DlpoolError, *library_errors()):
        open_idle()


def _environment_proxy(url: str) -> str | None:
    """Return the proxy that the environment names for ``url``, None without one.

    Raises ConfigurationError if the proxy is unusable.
    """
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    # imports requests, which only proxies and cookies need
    from dlpool.transfer.http.requests_adapter import environment_proxy

    proxy = environment_proxy(url)
    if proxy:
        _check_proxy(proxy)
    return proxy or None


def _check_proxy(proxy: str) -> None:
    """Raise ConfigurationError if ``proxy`` is not a proxy URL.

    The error message omits the password in ``proxy``.
    """
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        is_usable = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
        )
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ConfigurationError(
            f"proxy {display_url(proxy)!r} is not an http or https URL"
        )
