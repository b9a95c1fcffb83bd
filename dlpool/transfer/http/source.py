"""Send the requests of one download: redirects, cookies, credentials.

An ``HttpClient`` belongs to a process and keeps connections alive for all downloads. A
``Source`` belongs to one download, whose ``Transfer`` creates it. Another URL scheme
would need another class with the methods of ``Source``; ``urls.split_credentials``
decides which schemes are accepted.
"""

from __future__ import annotations

import errno
import http.client
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from dlpool.disk_errors import CANNOT_SPLICE
from dlpool.errors import (
    DlpoolError,
    PolicyRefused,
    ProtocolBroken,
    RetryRange,
    ShortBody,
    UsageError,
)
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.cancellable import PooledResponse
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.credentials import netrc_user
from dlpool.transfer.http.exchange import Exchange, OutgoingBody
from dlpool.transfer.http.http_client_adapter import COLLECT_S
from dlpool.transfer.http.network_errors import library_errors, network_error
from dlpool.transfer.http.policy import headers_for_origin, origin
from dlpool.transfer.http.urls import (
    authority,
    basic_auth,
    check_proxied_host,
    merge_cookies,
    request_headers,
    resolve_location,
    split_credentials,
)
from dlpool.transfer.pipe import Pipe

if TYPE_CHECKING:
    from dlpool.transfer.http.requests_adapter import CookieJar

MAX_REDIRECTS = 10
_REDIRECTS = {301, 302, 303, 307, 308}


class Reply:
    """A response whose body is still to be read. Used by one thread."""

    def __init__(
        self, body: PooledResponse, url: str, exchange: Exchange, min_read_bytes: int
    ) -> None:
        self.status = body.status
        self.headers = cast("Mapping[str, str]", body.headers)
        self.url = url
        self._body = body
        self._exchange = exchange
        self._min_read_bytes = min_read_bytes
        self._failure: DlpoolError | None = None

    def read(self, view: memoryview) -> int:
        """Read received bytes into ``view`` and return their number.

        Returns 0 at the end of the body. Collects several TLS records, each of at most
        16 KiB, while they arrive without delay. After a failure, first returns the
        bytes received before it, if any; then raises the error. If the exchange was
        cancelled, raises the error given to ``cancel``.
        """
        return self._collect(lambda filled: self._read_once(view[filled:]), len(view))

    @property
    def can_splice(self) -> bool:
        """Whether ``splice`` can be tried for the next bytes."""
        return self._failure is None and self._body.can_splice

    def splice(self, pipe: Pipe, size: int) -> int:
        """Move at most ``size`` received bytes into the empty ``pipe``.

        Returns their number. After a 0, call ``read``, which receives the next bytes or
        reports the end of the body. Collects bytes and raises errors as ``read`` does.
        """
        return self._collect(lambda moved: self._splice_once(pipe, size - moved), size)

    def close(self) -> None:
        """Return the connection to its pool; close it if the body is incomplete."""
        self._exchange.detach()
        with suppress(*library_errors()):
            self._body.release()

    def _collect(self, receive: Callable[[int], int], most: int) -> int:
        """Receive bytes until enough have arrived, or no more arrive without delay.

        ``receive``: from the number of bytes so far, receives more and returns their
        number. ``most``: the bytes that there is room for.
        """
        exchange, moved = self._exchange, 0
        began = exchange.waiting_since = exchange.clock()
        while self._failure is None and moved < min(most, self._min_read_bytes):
            count = receive(moved)
            moved += count
            if not count or exchange.clock() - began > COLLECT_S:
                break
        exchange.end_wait(moved)
        exchange.check()
        if self._failure is not None and not moved:
            raise self._failure
        return moved

    def _read_once(self, view: memoryview) -> int:
        try:
            size = self._body.readinto1(view)
        except (http.client.HTTPException, OSError, ValueError) as error:
            self._failure = network_error(error, is_answered=True)
            return 0
        if not size and self._body.length:
            self._failure = ShortBody("the connection ended before the body did")
        return size

    def _splice_once(self, pipe: Pipe, size: int) -> int:
        try:
            count = self._body.splice1(pipe, size)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, *CANNOT_SPLICE):
                self._failure = network_error(error, is_answered=True)
            return 0
        if not count and self._body.length:
            self._failure = ShortBody("the connection ended before the body did")
        return count


class Source:
    """One URL with its headers and credentials.

    All connection threads of a download use it. After a redirect, requests go directly
    to the redirect's target. When a request to the target fails, for example because a
    signed URL has expired, the next request goes to the first URL. The lock guards the
    cookies, and also the credentials for other origins.
    """

    def __init__(
        self,
        client: HttpClient,
        url: str,
        headers: Mapping[str, str],
        user: tuple[str, str] | None = None,
    ) -> None:
        """Prepare the requests. Raises UsageError for an invalid URL or header."""
        self._client = client
        self.url, in_url = split_credentials(url)
        self._headers = (
            request_headers(client.settings, headers)
            if headers
            else client.default_headers
        )
        user = user or in_url
        is_given = any(name.lower() == "authorization" for name in headers)
        if client.settings.netrc and not (is_given or (user and user[1])):
            user = netrc_user(self.url, user[0] if user else None) or user
        if user is not None:
            self._headers = {
                name: value
                for name, value in self._headers.items()
                if name.lower() != "authorization"
            }
            self._headers["Authorization"] = basic_auth(*user)
        self._location = self.url
        # from redirect targets, by origin
        self._credentials: dict[tuple[str, str, int | None], dict[str, str]] = {}
        self._cookies: CookieJar | None = None  # until a server sets a cookie
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """Return the host and port to which the next request goes."""
        return authority(self._location)

    def get(
        self,
        exchange: Exchange,
        requested: ByteRange | None,
        if_range: str | None = None,
    ) -> Reply:
        """Send a GET request for a range, or for the complete file.

        ``if_range``: a validator for ``If-Range``. Raises RetryRange, FailJob, or the
        error with which the exchange was cancelled.
        """
        headers = (
            {"Range": f"bytes={requested.start}-{requested.end - 1}"}
            if requested
            else {}
        )
        if requested and if_range:
            headers["If-Range"] = if_range
        return self._request("GET", exchange, headers)

    def head(self, exchange: Exchange) -> Reply:
        """Send a HEAD request and return its reply, which is closed."""
        reply = self._request("HEAD", exchange, {})
        reply.close()
        return reply

    def send(
        self,
        exchange: Exchange,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> Reply:
        """Send a request for ``url`` without following redirects.

        ``url`` must have the origin of this source.
        """
        return self._send(method, url, exchange, headers, body)

    @property
    def location(self) -> str:
        """Return the URL to which the next request goes."""
        return self._location

    def forget_location(self) -> None:
        """Send the next request to the first URL: the redirect's target has failed."""
        self._location = self.url

    def _request(
        self, method: str, exchange: Exchange, headers: Mapping[str, str]
    ) -> Reply:
        first_url = self._location
        try:
            reply = self._follow(method, exchange, headers, first_url)
        except DlpoolError:
            self.forget_location()
            raise
        if first_url != self.url and may_be_expired(reply.status):
            reply.close()
            reply = self._follow(method, exchange, headers, self.url)
        self._location = reply.url if reply.status < 400 else self.url
        return reply

    def _follow(
        self, method: str, exchange: Exchange, headers: Mapping[str, str], url: str
    ) -> Reply:
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._send(method, url, exchange, headers)
            if reply.status not in _REDIRECTS:
                return reply
            reply.close()
            url = self._redirect_url(reply)
        raise ProtocolBroken(f"the server redirected more than {MAX_REDIRECTS} times")

    def _redirect_url(self, reply: Reply) -> str:
        """Return the target of a redirect (RFC 9110 section 15.4).

        Raises PolicyRefused if the redirect must not be followed, ProtocolBroken if it
        has no ``Location``.
        """
        location = reply.headers.get("Location")
        if not location:
            raise ProtocolBroken(
                f"the server answered {reply.status} without a Location"
            )
        try:
            url, user = split_credentials(resolve_location(reply.url, location))
        except (UsageError, ValueError) as error:
            raise PolicyRefused(
                "the server redirected to a URL that is not http or https"
            ) from error
        is_downgrade = reply.url.startswith("https:") and url.startswith("http:")
        if is_downgrade and not self._client.settings.allow_downgrade:
            raise PolicyRefused(
                "the server redirected from https to http (allow_downgrade permits "
                "that)"
            )
        if user is not None:
            with self._lock:
                self._credentials[origin(url)] = {"Authorization": basic_auth(*user)}
        return url

    def _send(
        self,
        method: str,
        url: str,
        exchange: Exchange,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> Reply:
        client, host = self._client, authority(url)
        while (wait := client.host_holds.wait_s(host)) > 0:
            exchange.sleep(wait)
            exchange.check()
        if client.proxy(url):
            check_proxied_host(url, client.settings)
        sent = self._headers_for(url, headers)
        exchange.sent_at, exchange.answered_at = exchange.clock(), None
        try:
            raw = client.send(method, url, sent, body)
        except library_errors() as error:
            raise exchange.cancel_error or network_error(
                error, exchange.is_reused
            ) from error
        except RetryRange as error:
            if error.is_own_network:
                client.network_monitor.failed(host)
            if exchange.cancel_error is None:
                raise  # not `from error`: its own cause would be lost
            raise exchange.cancel_error from error
        exchange.answered_at = exchange.clock()
        client.network_monitor.answered(host)
        self._keep_cookies(url, raw)
        return Reply(raw, url, exchange, client.min_read_bytes)

    def _headers_for(self, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers for ``url``, which may be of another origin.

        ``Cookie`` contains the user's cookies and the cookies that servers have set.
        For example, a server that sets a cookie in a redirect expects it in the next
        request.
        """
        sent = headers_for_origin(url, self.url, self._headers)
        sent.update(headers)
        if self._credentials and "authorization" not in (name.lower() for name in sent):
            sent |= self._credentials.get(origin(url), {})
        if self._cookies is None:
            return sent
        with self._lock:
            stored = self._cookies.header(url)
        values = next((name for name in sent if name.lower() == "cookie"), "Cookie")
        if cookie := merge_cookies(sent.get(values), stored):
            sent[values] = cookie
        return sent

    def _keep_cookies(self, url: str, raw: PooledResponse) -> None:
        if "Set-Cookie" not in raw.headers:
            return
        # imports requests, which only proxies and cookies need
        from dlpool.transfer.http.requests_adapter import CookieJar

        values = raw.headers.get_all("Set-Cookie") or ()
        with self._lock:
            self._cookies = self._cookies or CookieJar()
            self._cookies.store(url, values)


def may_be_expired(status: int) -> bool:
    """Return whether a status may mean an expired URL, as 403 does for a signed URL."""
    return 400 <= status < 500 and status not in (408, 416, 425, 429)
