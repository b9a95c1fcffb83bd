"""The HTTP client of a process: connection pools, proxies and TLS contexts."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from dlpool.config import NetworkSettings
from dlpool.errors import ConfigurationError
from dlpool.transfer.http.connection import TargetedHeaders, pool_classes
from dlpool.transfer.http.exchange import OutgoingBody
from dlpool.transfer.http.host_connections import HostConnections
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit
from dlpool.transfer.http.policy import NetworkPolicy, origin
from dlpool.transfer.http.response import StrictResponse
from dlpool.transfer.http.urls import (
    basic_auth,
    display_url,
    request_target,
    split_credentials,
)
from dlpool.transfer.timer import TimerThread

ENOUGH = 128 * 1024  # bytes after which one read stops collecting
MAX_HOSTS = 64  # hosts with idle connections


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
        """``pool_size``: idle connections per host that are kept for reuse.

        ``rate_limit``: shared by all downloads. ``min_read_bytes``: bytes that one read
        collects while they arrive without delay, if more than ``ENOUGH``.
        ``max_idle_s``: seconds after which an idle connection is closed; None means
        ``MAX_IDLE_S``.
        """
        self.settings = settings
        self.host_holds = host_holds
        self.network_monitor = network_monitor
        self.host_connections = HostConnections(time.monotonic)
        self.rate_limit = rate_limit or RateLimit(None, time.monotonic)
        self.min_read_bytes = max(min_read_bytes, ENOUGH)
        self.session = requests.Session()
        self._idle_closer = IdleCloser(max_idle_s)
        self._adapter = _Adapter(settings, pool_size, self._idle_closer)
        self._timeout = urllib3.Timeout(
            connect=settings.connect_timeout, read=settings.read_timeout
        )
        self.session.mount("http://", self._adapter)
        self.session.mount("https://", self._adapter)
        self.timer = TimerThread()
        # limits of this machine that have been reported
        self.reported_limits: set[str] = set()
        self._proxies: dict[tuple[str, str, int | None], Mapping[str, str]] = {}

    def proxies(self, url: str) -> Mapping[str, str]:
        """Return the configured proxy, else those of the environment, by scheme."""
        if self.settings.proxy:
            return {"http": self.settings.proxy, "https": self.settings.proxy}
        found = self._proxies.get(origin(url))
        if found is None:
            found = get_environ_proxies(url)
            if proxy := select_proxy(url, found):
                _check_proxy(proxy)
            self._proxies[origin(url)] = found
        return found

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> StrictResponse:
        """Send a request and return its response with the body unread.

        Raises the exceptions of requests and urllib3. Uses the connection pools of
        requests' adapter without its ``send``, which takes as long as a small file.
        """
        pool, request = self._adapter.route(url, self.proxies(url))
        raw: Any = pool.urlopen(
            method,
            request.route,
            body=cast(Any, body),
            headers=TargetedHeaders(request.target, headers),
            redirect=False,
            retries=False,
            assert_same_host=False,
            timeout=self._timeout,
            preload_content=False,
            decode_content=False,
        )
        return cast(StrictResponse, raw)

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
        self.session.close()


class RequestTarget(NamedTuple):
    """The URL by which urllib3 tunnels, and the target (RFC 9112 section 3.2)."""

    route: str
    target: str


class _Adapter(HTTPAdapter):
    """requests' adapter with our connection classes and one TLS context."""

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
            # urllib3 closes only connections without references
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
        """Return the pool of a URL's host, or of its proxy, and the target."""
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
        """Return the pool of the request's host, cached: urllib3's look-up is slow."""
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


def _check_proxy(proxy: str) -> None:
    """Raise ConfigurationError if ``proxy`` is not a proxy URL.

    The message does not show its password.
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


def tls_context(settings: NetworkSettings) -> ssl.SSLContext:
    """Return a context that trusts the configured, system or bundled CAs.

    It reports a connection that closes without close_notify, which Python ignores by
    default. Raises ConfigurationError if the files cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.cacert)
    except OSError as error:
        raise ConfigurationError(
            f"cacert {settings.cacert} cannot be used: {error}"
        ) from error
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    try:
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key)
    except OSError as error:
        raise ConfigurationError(
            f"cert {settings.cert} (key {settings.key}) cannot be used: {error}"
        ) from error
    if (
        settings.cacert is None
        and not context.cert_store_stats()["x509_ca"]
        and not _has_ca_folder()
    ):
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return context


def _has_ca_folder() -> bool:
    """Return whether OpenSSL's CA folder has files, which a context does not count."""
    folder = ssl.get_default_verify_paths().capath
    return bool(folder and Path(folder).is_dir() and any(Path(folder).iterdir()))
