"""Our urllib3 connections: they can be ended from outside, check the address they connect to, and read strictly.

Strictly: every 1xx but 101 is skipped (http.client returns a 103 as the final answer), and all header fields
together stay under ``MAX_HEADER_BYTES``.
"""

from __future__ import annotations

import errno
import http.client
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dlpool.errors import ConnectionBroken, NameNotResolved, RetryRange, TimedOut, Unreachable
from dlpool.transfer.exchange import Breaker, running
from dlpool.transfer.policy import check_address

MAX_HEADER_BYTES = 64 * 1024
MAX_INFORMATIONAL = 32  # 1xx answers before the final one
MAX_IDLE_S = 30.0
_OWN_NETWORK = {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}


class StrictResponse(http.client.HTTPResponse):
    """http.client's answer with a bound on its header and all informational answers skipped."""

    def begin(self) -> None:
        body = self.fp
        self.fp = cast(Any, _HeaderReader(body))
        try:
            super().begin()
        finally:
            if isinstance(self.fp, _HeaderReader):  # not when http.client closed it
                self.fp = body
        coding = self.headers.get("Transfer-Encoding")
        if coding is not None and not self.chunked:  # http.client would hand out the framing as body
            raise http.client.HTTPException(f"Transfer-Encoding is {coding[:80]!r}")
        exchange = running()
        if exchange is not None:
            exchange.body = self

    def readinto1(self, buffer: Any) -> int:
        """Read what has arrived into ``buffer``, past http.client's way over new bytes; 0 at the end of the body."""
        view = memoryview(buffer)
        if self.chunked or self.fp is None:
            data = self.read1(len(view))
            view[: len(data)] = data
            return len(data)
        if self.length is not None:
            view = view[: self.length]
        size: int = self.fp.readinto1(view)
        if size == 0 and len(view):
            self._close_conn()  # type: ignore[attr-defined]
        elif self.length is not None:
            self.length -= size
        return size

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MAX_INFORMATIONAL):
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status >= 200 or status == 101:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("too many informational answers")


class _HeaderReader:
    """The lines of a header, up to a total size."""

    def __init__(self, lines: BinaryIO) -> None:
        self._lines = lines
        self._left = MAX_HEADER_BYTES

    def readline(self, limit: int = -1) -> bytes:
        line = self._lines.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise http.client.HTTPException(f"the header is larger than {MAX_HEADER_BYTES} bytes")
        return line

    def flush(self) -> None:
        """http.client flushes what it closes."""

    def close(self) -> None:
        self._lines.close()


class _Watched(HTTPConnection):
    """A connection whose running exchange can end it."""

    response_class = StrictResponse
    network_policy = "any"
    idle_since = 0.0
    _breaker: Breaker | None = None

    def _new_conn(self) -> socket.socket:
        policy = "any" if self.proxy else self.network_policy
        timeout = self.timeout if isinstance(self.timeout, (int, float)) else None
        return connect(self._dns_host, self.port, timeout, policy, self._watch)

    def _watch(self, sock: socket.socket) -> None:
        for option in self.socket_options or []:
            sock.setsockopt(*option)
        if self._breaker is not None:
            self._breaker.release()
        self._breaker = Breaker(sock)
        exchange = running()
        if exchange is not None:
            exchange.attach(self._breaker)

    def request(self, *args: Any, **kwargs: Any) -> None:
        exchange = running()
        if exchange is not None:
            exchange.is_reused = self.sock is not None and self.idle_since > 0
            if self._breaker is not None:
                exchange.attach(self._breaker)
        super().request(*args, **kwargs)

    def close(self) -> None:
        if self._breaker is not None:
            self._breaker.release()
            self._breaker = None
        self.idle_since = 0.0
        super().close()


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS."""


class _IdleLimit(urllib3.HTTPConnectionPool):
    """A pool that does not hand out connections which were idle for long: the server is about to close them."""

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = cast(Any, super()._get_conn(timeout))
        if connection.idle_since and time.monotonic() - connection.idle_since > MAX_IDLE_S:
            connection.close()
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)


class _IdleLimitTls(_IdleLimit, urllib3.HTTPSConnectionPool):
    """The same over TLS."""


def pool_classes(network_policy: str) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """urllib3 pool classes, by scheme, whose connections obey the network policy."""
    policy = {"network_policy": network_policy}
    plain = type("WatchedConnection", (_Watched,), policy)
    tls = type("WatchedTlsConnection", (_WatchedTls,), policy)
    return {
        "http": type("WatchedPool", (_IdleLimit,), {"ConnectionCls": plain}),
        "https": type("WatchedTlsPool", (_IdleLimitTls,), {"ConnectionCls": tls}),
    }


def connect(
    host: str, port: int, timeout_s: float | None, policy: str, watch: Callable[[socket.socket], None]
) -> socket.socket:
    """Connect to the first address of ``host`` that answers, all within ``timeout_s``.

    Every address is checked against the network policy first. ``watch`` sees each socket before it connects.
    Raises NameNotResolved, Unreachable, TimedOut or PolicyRefused.
    """
    addresses = _resolve(host.strip("[]").replace("%25", "%"), port)  # %25: a zone, RFC 6874
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    failure: RetryRange = Unreachable(f"{host} has no usable address")
    for index, (family, address) in enumerate(addresses):
        check_address(address[0], policy)
        limit = None
        if deadline is not None:  # keep half of what is left for the addresses behind this one
            left = deadline - time.monotonic()
            limit = max(0.001, left / 2 if index + 1 < len(addresses) else left)
        try:
            return _connect_one(family, address, limit, watch)
        except RetryRange as error:
            failure = error
    raise failure


def _resolve(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        is_own = error.errno == socket.EAI_AGAIN
        reason = f"the name {host} cannot be resolved ({error.strerror})"
        raise NameNotResolved(reason, is_own_network=is_own) from error
    except UnicodeError as error:
        raise NameNotResolved(f"{host!r} is no host name") from error
    return [(family, address) for family, _kind, _protocol, _name, address in found]


def _connect_one(
    family: int, address: tuple[Any, ...], timeout_s: float | None, watch: Callable[[socket.socket], None]
) -> socket.socket:
    place = f"{address[0]} port {address[1]}"
    sock = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        watch(sock)
        sock.connect(address)
        return sock
    except BaseException as error:
        if sock is not None:
            with suppress(OSError):
                sock.close()
        if isinstance(error, TimeoutError):
            raise TimedOut(f"connecting to {place} took longer than the connect timeout") from error
        if isinstance(error, OSError):
            raise _unreachable(place, error) from error
        raise


def _unreachable(place: str, error: OSError) -> RetryRange:
    reason = error.strerror or str(error)
    if error.errno == errno.ECONNRESET:
        return ConnectionBroken(f"{place} reset the connection")
    return Unreachable(f"{place} cannot be reached ({reason})", is_own_network=error.errno in _OWN_NETWORK)
