"""Where a file comes from: requests, redirects, credentials, and the errors of the
network.

With ``client``, ``connection`` and ``neterrors`` the only user of requests and urllib3.
A ``HttpClient`` belongs to a process and keeps connections alive over files; a
``TaskSource`` belongs to one download.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.cookies import (
    RequestsCookieJar,
    extract_cookies_to_jar,
    get_cookie_header,
)

from dlpool.errors import (
    DlpoolError,
    PolicyRefused,
    ProtocolBroken,
    RetryRange,
    ShortBody,
    UsageError,
)
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.credentials import netrc_user
from dlpool.transfer.http.exchange import Exchange, OutgoingBody
from dlpool.transfer.http.network_errors import network_error
from dlpool.transfer.http.policy import headers_for_origin, origin
from dlpool.transfer.http.response import HeaderFields, StrictResponse
from dlpool.transfer.http.urls import (
    basic_auth,
    check_proxied_host,
    merge_cookies,
    request_headers,
    resolve_location,
    split_credentials,
)

MAX_REDIRECTS = 10
MAX_COOKIE = (
    8 * 1024
)  # characters of one with its attributes; browsers take 4096 (RFC 6265 section 6.1)
MAX_COOKIES = 200  # that a server may have us keep
COLLECT_S = 0.02  # for so long one read collects
_REDIRECTS = {301, 302, 303, 307, 308}


class Reply:
    """An answer whose body is still to come. Used by one thread."""

    def __init__(
        self, body: StrictResponse, url: str, exchange: Exchange, enough: int
    ) -> None:
        self.status = body.status
        self.headers = cast("Mapping[str, str]", body.headers)
        self.url = url
        self._body = body
        self._exchange = exchange
        self._enough = enough
        self._failure: DlpoolError | None = None

    def read(self, view: memoryview) -> int:
        """Fill ``view`` with what has arrived, as sent; 0 at the end of the body.
        Raises RetryRange or the verdict.

        TLS brings 16 KiB at a time: several are collected while they come without
        delay. What came before a failure is returned first.
        """
        exchange = self._exchange
        began = exchange.clock()
        exchange.reading_since = began
        filled = 0
        while self._failure is None and filled < min(len(view), self._enough):
            size = self._read_once(view[filled:])
            filled += size
            if not size or exchange.clock() - began > COLLECT_S:
                break
        exchange.reading_since = None
        exchange.read_s += exchange.clock() - began
        exchange.received += filled
        exchange.check()
        if self._failure is not None and not filled:
            raise self._failure
        return filled

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it."""
        self._exchange.detach()
        with suppress(urllib3.exceptions.HTTPError, http.client.HTTPException, OSError):
            self._body.release()

    def _read_once(self, view: memoryview) -> int:
        try:
            size = self._body.readinto1(view)
        except (http.client.HTTPException, OSError, ValueError) as error:
            self._failure = network_error(error, is_answered=True)
            return 0
        if not size and self._body.length:
            self._failure = ShortBody("the connection ended before the body did")
        return size


class Source:
    """One URL with its headers and credentials. Used by all connection threads of a
    download.

    After a redirect the place that it led to is asked directly, until it fails: then
    the first URL is asked again, so that an expired signed URL costs one request. The
    lock guards the cookies and the users of other origins.
    """

    def __init__(
        self,
        client: HttpClient,
        url: str,
        headers: Mapping[str, str],
        user: tuple[str, str] | None = None,
    ) -> None:
        """Raises UsageError for a URL that is none."""
        self._client = client
        self.url, in_url = split_credentials(url)
        self._headers = request_headers(client.settings, headers)
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
        self._users: dict[
            tuple[str, str, int | None], dict[str, str]
        ] = {}  # from redirect targets, by origin
        self._cookies = RequestsCookieJar()
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The host that is asked at present."""
        return urlsplit(self._location).netloc

    def get(
        self, exchange: Exchange, asked: ByteRange | None, if_range: str | None = None
    ) -> Reply:
        """GET a range, or everything. Raises RetryRange, FailJob, or the exchange's
        verdict."""
        headers = {"Range": f"bytes={asked.start}-{asked.end - 1}"} if asked else {}
        if asked and if_range:
            headers["If-Range"] = if_range
        return self._ask("GET", exchange, headers)

    def head(self, exchange: Exchange) -> Reply:
        """Ask for the header alone."""
        reply = self._ask("HEAD", exchange, {})
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
        """Ask another ``url`` of the same origin; redirects are answers like others."""
        return self._send(method, url, exchange, headers, body)

    def forget_location(self) -> None:
        """What a redirect led to is of no use any more: ask the first URL again."""
        self._location = self.url

    def _ask(
        self, method: str, exchange: Exchange, headers: Mapping[str, str]
    ) -> Reply:
        asked_first = self._location
        try:
            reply = self._follow(method, exchange, headers, asked_first)
        except DlpoolError:
            self.forget_location()
            raise
        if asked_first != self.url and may_be_expired(reply.status):
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
            url = self._target(reply)
        raise ProtocolBroken(f"the server redirected more than {MAX_REDIRECTS} times")

    def _target(self, reply: Reply) -> str:
        """Where a redirect leads (RFC 9110 section 15.4). Raises PolicyRefused for what
        is not followed."""
        location = reply.headers.get("Location")
        if not location:
            raise ProtocolBroken(
                f"the server answered {reply.status} without a Location"
            )
        try:
            url, user = split_credentials(resolve_location(reply.url, location))
        except (UsageError, ValueError) as error:
            raise PolicyRefused(
                "the server redirected to what is not an http or https URL"
            ) from error
        is_downgrade = reply.url.startswith("https:") and url.startswith("http:")
        if is_downgrade and not self._client.settings.allow_downgrade:
            raise PolicyRefused(
                "the server redirected from https to http (allow_downgrade would "
                "follow)"
            )
        if user is not None:
            with self._lock:
                self._users[origin(url)] = {"Authorization": basic_auth(*user)}
        return url

    def _send(
        self,
        method: str,
        url: str,
        exchange: Exchange,
        headers: Mapping[str, str],
        body: OutgoingBody | None = None,
    ) -> Reply:
        client, host = self._client, urlsplit(url).netloc
        while (wait := client.host_holds.wait_s(host)) > 0:
            exchange.sleep(wait)
            exchange.check()
        if client.proxies(url):
            check_proxied_host(url, client.settings)
        sent = self._headers_for(url, headers)
        exchange.sent_at, exchange.answered_at = exchange.clock(), None
        try:
            raw = client.send(method, url, sent, body)
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            ValueError,
        ) as error:
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
        """Return the headers for ``url``, whose origin may differ from the one that the
        headers are for.

        Cookies of the user go with those that servers have set: a redirect that sets
        one expects it back.
        """
        sent = headers_for_origin(url, self.url, self._headers)
        sent.update(headers)
        if self._users and "authorization" not in (name.lower() for name in sent):
            sent |= self._users.get(origin(url), {})
        if not self._cookies:
            return sent
        with self._lock:
            stored = get_cookie_header(self._cookies, _asked_by_cookies(url))
        given = next((name for name in sent if name.lower() == "cookie"), "Cookie")
        if cookie := merge_cookies(sent.get(given), stored):
            sent[given] = cookie
        return sent

    def _keep_cookies(self, url: str, raw: StrictResponse) -> None:
        if "Set-Cookie" not in raw.headers:
            return
        given = raw.headers.get_all("Set-Cookie") or ()
        with self._lock:
            if len(self._cookies) < MAX_COOKIES:
                extract_cookies_to_jar(
                    self._cookies, _asked_by_cookies(url), _set_cookies(given)
                )


def _set_cookies(values: Sequence[str]) -> Any:
    """Return a response for the cookie jar that has these ``Set-Cookie`` fields, as far
    as browsers take them.

    And no ``Set-Cookie2``, which is obsolete (RFC 6265 section 9.4) and which
    http.cookiejar parses in quadratic time.
    """
    kept = [
        ("Set-Cookie", value)
        for value in values[:MAX_COOKIES]
        if len(value) <= MAX_COOKIE
    ]
    return SimpleNamespace(_original_response=SimpleNamespace(msg=HeaderFields(kept)))


def _asked_by_cookies(url: str) -> Any:
    """A request for the cookie jar; a PreparedRequest would have a rewritten URL."""
    return SimpleNamespace(url=url, headers={})


def may_be_expired(status: int) -> bool:
    """Whether a status of a redirect's target may mean that only the way there is
    stale, as a signed URL's 403."""
    return 400 <= status < 500 and status not in (408, 416, 425, 429)
