"""Where a file comes from: requests, redirects, credentials, and the errors of the network.

With ``connection`` the only user of requests and urllib3. A ``Client`` belongs to a process and keeps connections
alive over files; a ``Source`` belongs to one download.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.auth import _basic_auth_str
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.utils import get_auth_from_url, get_environ_proxies, get_netrc_auth, requote_uri

from dlpool import __version__
from dlpool.config import NetworkSettings
from dlpool.errors import (
    ConfigurationError,
    DlpoolError,
    PolicyRefused,
    ProtocolBroken,
    RetryRange,
    UsageError,
)
from dlpool.transfer.answer import Span
from dlpool.transfer.connection import pool_classes
from dlpool.transfer.exchange import Exchange
from dlpool.transfer.limits import HostGate, NetworkWatch
from dlpool.transfer.neterrors import network_error
from dlpool.transfer.policy import check_address, headers_for, origin

MAX_REDIRECTS = 10
MAX_HOSTS = 64  # whose idle connections are kept
_REDIRECTS = {301, 302, 303, 307, 308}


class Client:
    """The connections of a process. Thread-safe; pass one to all downloads.

    ``pool_size``: connections to one host that are kept for reuse.
    """

    def __init__(self, settings: NetworkSettings, pool_size: int, gate: HostGate, watch: NetworkWatch) -> None:
        self.settings = settings
        self.gate = gate
        self.watch = watch
        self.session = requests.Session()
        adapter = _Adapter(settings, pool_size)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self._proxies: dict[tuple[str, str, int | None], Mapping[str, str]] = {}

    def proxies(self, url: str) -> Mapping[str, str]:
        """The proxies for a URL, by scheme: the configured one, else the environment's."""
        if self.settings.proxy:
            return {"http": self.settings.proxy, "https": self.settings.proxy}
        found = self._proxies.get(origin(url))
        if found is None:
            found = self._proxies[origin(url)] = get_environ_proxies(url)
        return found

    def close(self) -> None:
        """Close the idle connections."""
        self.session.close()


class Reply:
    """An answer whose body is still to come. Used by one thread."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, url: str, exchange: Exchange) -> None:
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers
        self.url = url
        self._raw = raw
        self._exchange = exchange

    def read(self, size: int) -> bytes:
        """What has arrived, at most ``size`` bytes, as sent; b"" at the end. Raises RetryRange or the verdict."""
        exchange = self._exchange
        exchange.reading_since = began = exchange.clock()
        try:
            data = self._raw.read1(size, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise exchange.verdict or network_error(error, is_answered=True) from error
        finally:
            exchange.reading_since = None
            exchange.read_s += exchange.clock() - began
        exchange.received += len(data)
        exchange.check()
        return data

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        with suppress(urllib3.exceptions.HTTPError, OSError):
            if self._raw.length_remaining == 0:
                self._raw.release_conn()
            self._raw.close()


class Source:
    """One URL with its headers and credentials. Used by all connection threads of a download.

    After a redirect the place that it led to is asked directly, until it fails: then the first URL is asked again,
    so that an expired signed URL costs one request. The lock guards the cookies.
    """

    def __init__(
        self, client: Client, url: str, headers: Mapping[str, str], user: tuple[str, str] | None = None
    ) -> None:
        """Raises UsageError for a URL that is none."""
        self._client = client
        self.url, in_url = _without_user(url)
        self._headers = _defaults(client.settings) | dict(headers)
        user = user or in_url or (get_netrc_auth(self.url) if client.settings.netrc else None)
        if user is not None:
            self._headers["Authorization"] = _basic_auth_str(*(part.encode() for part in user))
        self._location = self.url
        self._cookies = RequestsCookieJar()
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The host that is asked at present."""
        return urlsplit(self._location).netloc

    def get(self, exchange: Exchange, asked: Span | None, if_range: str | None = None) -> Reply:
        """GET a range, or everything. Raises RetryRange, FailJob, or the exchange's verdict."""
        headers = {"Range": f"bytes={asked.start}-{asked.end - 1}"} if asked else {}
        if asked and if_range:
            headers["If-Range"] = if_range
        return self._ask("GET", exchange, headers)

    def head(self, exchange: Exchange) -> Reply:
        """Ask for the header alone."""
        reply = self._ask("HEAD", exchange, {})
        reply.close()
        return reply

    def _ask(self, method: str, exchange: Exchange, headers: Mapping[str, str]) -> Reply:
        asked_first = self._location
        try:
            reply = self._follow(method, exchange, headers, asked_first)
        except DlpoolError:
            self._location = self.url
            raise
        if reply.status >= 400 and reply.status != 416 and asked_first != self.url:
            reply.close()
            reply = self._follow(method, exchange, headers, self.url)
        self._location = reply.url if reply.status < 400 else self.url
        return reply

    def _follow(self, method: str, exchange: Exchange, headers: Mapping[str, str], url: str) -> Reply:
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._send(method, url, exchange, headers)
            if reply.status not in _REDIRECTS:
                return reply
            reply.close()
            url = self._target(reply)
        raise ProtocolBroken(f"the server redirected more than {MAX_REDIRECTS} times")

    def _target(self, reply: Reply) -> str:
        """Where a redirect leads (RFC 9110 section 15.4). Raises PolicyRefused for what is not followed."""
        location = reply.headers.get("Location")
        if not location:
            raise ProtocolBroken(f"the server answered {reply.status} without a Location")
        with suppress(UnicodeError):  # http.client decodes as latin-1; most servers mean UTF-8
            location = location.encode("latin-1").decode()
        try:
            url, _user = _without_user(requote_uri(urljoin(reply.url, location)))
        except UsageError as error:
            raise PolicyRefused(f"the server redirected to {location[:200]!r}, which is not http or https") from error
        is_downgrade = reply.url.startswith("https:") and url.startswith("http:")
        if is_downgrade and not self._client.settings.allow_downgrade:
            raise PolicyRefused("the server redirected from https to http (allow_downgrade would follow)")
        return url

    def _send(self, method: str, url: str, exchange: Exchange, headers: Mapping[str, str]) -> Reply:
        client, host = self._client, urlsplit(url).netloc
        exchange.pause(client.gate.wait_s(host))
        proxies = client.proxies(url)
        if proxies:
            _check_literal(url, client.settings.network)
        request = self._prepared(method, url, headers)
        exchange.asked_at, exchange.answered_at = exchange.clock(), None
        try:
            answer = client.session.get_adapter(url).send(
                request,
                stream=True,
                timeout=(client.settings.connect_timeout, client.settings.read_timeout),
                proxies=dict(proxies),
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise exchange.verdict or network_error(error, exchange.is_reused) from error
        except RetryRange as error:
            if error.is_own_network:
                client.watch.failed(host)
            raise exchange.verdict or error from error
        exchange.answered_at = exchange.clock()
        client.watch.answered(host)
        self._keep_cookies(request, answer.raw)
        return Reply(answer.raw, url, exchange)

    def _prepared(self, method: str, url: str, headers: Mapping[str, str]) -> requests.PreparedRequest:
        request = requests.PreparedRequest()
        request.prepare_method(method)
        request.url = url
        try:
            request.prepare_headers(headers_for(url, self.url, self._headers) | dict(headers))
        except (requests.exceptions.InvalidHeader, UnicodeError) as error:
            raise UsageError(f"a header cannot be sent: {error}") from error
        with self._lock:
            if len(self._cookies) and "Cookie" not in request.headers:
                request.prepare_cookies(self._cookies)
        return request

    def _keep_cookies(self, request: requests.PreparedRequest, raw: Any) -> None:
        if "Set-Cookie" in raw.headers:
            with self._lock:
                extract_cookies_to_jar(self._cookies, request, raw)


class _Adapter(HTTPAdapter):
    """requests' adapter over our connections, with one TLS context, loaded when the first https URL comes."""

    def __init__(self, settings: NetworkSettings, pool_size: int) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        super().__init__(pool_connections=MAX_HOSTS, pool_maxsize=pool_size)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = pool_classes(self._settings.network)

    def proxy_manager_for(self, proxy: str, **proxy_kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **proxy_kwargs)
        manager.pool_classes_by_scheme = pool_classes(self._settings.network)
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        parts = urlsplit(request.url or "")
        host = {"scheme": str(parts.scheme), "host": parts.hostname, "port": parts.port}
        return host, {"ssl_context": self._tls()} if parts.scheme == "https" else {}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Nothing to do: the context verifies."""

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = tls_context(self._settings)
            return self._context


def tls_context(settings: NetworkSettings) -> ssl.SSLContext:
    """A context that trusts the given CA bundle, else the system's, else requests' own.

    Raises ConfigurationError for files that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=settings.cacert)
        if settings.cert:
            context.load_cert_chain(settings.cert, settings.key)
    except OSError as error:
        name = settings.cacert if not settings.cert or not os.path.exists(settings.cacert or "/") else settings.cert
        raise ConfigurationError(f"the certificates in {name} cannot be used: {error}") from error
    if settings.cacert is None and not context.cert_store_stats()["x509_ca"] and not _has_ca_folder():
        context.load_verify_locations(requests.certs.where())
    if settings.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _has_ca_folder() -> bool:
    """Whether OpenSSL finds CA certificates one by one, which a context does not count."""
    folder = ssl.get_default_verify_paths().capath
    return bool(folder and os.path.isdir(folder) and os.listdir(folder))


def _defaults(settings: NetworkSettings) -> dict[str, str]:
    agent = settings.user_agent or f"dlpool/{__version__}"
    return {"User-Agent": agent, "Accept": "*/*", "Accept-Encoding": "identity"}


def _without_user(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL as requests sends it, less user info and fragment, and the user info. Raises UsageError."""
    if urlsplit(url.strip()).scheme.lower() not in ("http", "https"):
        raise UsageError(f"{url[:200]!r} is not an http or https URL")
    request = requests.PreparedRequest()
    try:
        request.prepare_url(url, None)
        parts = urlsplit(request.url or "")
        _ = parts.port
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        raise UsageError(f"{url[:200]!r} is not a URL: {error}") from error
    user = get_auth_from_url(request.url)
    netloc = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=netloc, fragment="").geturl(), user if any(user) else None


def _check_literal(url: str, policy: str) -> None:
    """Behind a proxy the address is not ours to see, unless the URL names it."""
    with suppress(ValueError):
        check_address(urlsplit(url).hostname or "", policy)
