"""Our urllib3 connections: they can be ended from outside, check the address they
connect to, and read strictly."""

from __future__ import annotations

import errno
import http.client
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dlpool.errors import (
    ConnectionBroken,
    NameNotResolved,
    OutOfDescriptors,
    RetryRange,
    TimedOut,
    Unreachable,
)
from dlpool.threads import has_free_descriptors, is_out_of_descriptors
from dlpool.transfer.http.exchange import (
    Exchange,
    OutgoingBody,
    SocketShutdown,
    current_exchange,
)
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.policy import ANY_NETWORK, NetworkPolicy
from dlpool.transfer.http.response import StrictResponse

_INTERIM = re.compile(
    rb"HTTP/1\.[01] 1"
)  # a 1xx (RFC 9110, section 15.2), as some servers send one unasked
_KNOWN_BY = 10  # bytes of an answer tell whether it is one
_Plain = (
    http.client.HTTPConnection
)  # of what urllib3's does besides, nothing is needed here
_TOO_MANY = "too many files are open (raise ulimit -n, or use fewer connections)"
_OWN_NETWORK = {errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH}


class TargetedHeaders(dict[str, str]):
    """Header fields of a request, with its target: urllib3 would rewrite a target
    passed as a URL."""

    def __init__(self, target: str, fields: Mapping[str, str]) -> None:
        super().__init__(fields)
        self.target = target

    def copy(self) -> TargetedHeaders:
        """Return a copy, to which urllib3 adds the fields for a proxy."""
        return TargetedHeaders(self.target, self)


class _Watched(HTTPConnection):
    """A connection whose running exchange can end it."""

    response_class = StrictResponse
    network_policy = ANY_NETWORK
    idle_since = 0.0
    is_cut = False  # a request was not sent to its end
    _listens = True  # whether what can be read while a body is sent is an answer
    _breaker: SocketShutdown | None = None

    def _new_conn(self) -> socket.socket:
        policy = ANY_NETWORK if self.proxy else self.network_policy
        timeout = self.timeout if isinstance(self.timeout, (int, float)) else None
        return connect(self._dns_host, self.port, timeout, policy, self._watch)

    def _watch(self, sock: socket.socket) -> None:
        for option in self.socket_options or []:
            sock.setsockopt(*option)
        if self._breaker is not None:
            self._breaker.release()
        self._breaker = SocketShutdown(sock)
        exchange = current_exchange()
        if exchange is not None:
            exchange.attach(self._breaker)

    def request(  # type: ignore[override]
        self,
        method: str,
        _url: str,
        *,
        headers: TargetedHeaders,
        body: OutgoingBody | None = None,
        **_: Any,
    ) -> None:
        """Send a request; ``headers`` are complete, except for Host and the length of
        the body.

        The target of ``headers`` is sent; ``_url`` only led urllib3 to this connection.
        """
        exchange = current_exchange()
        if exchange is not None:
            exchange.is_reused = self.sock is not None and self.idle_since > 0
            if self._breaker is not None:
                exchange.attach(self._breaker)
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        has_host = any(name.lower() == "host" for name in headers)
        _Plain.putrequest(
            self, method, headers.target, skip_host=has_host, skip_accept_encoding=True
        )
        for name, value in headers.items():
            _Plain.putheader(self, name, value)
        if body is not None:
            _Plain.putheader(self, "Content-Length", str(body.size))
        self.endheaders()
        if body is not None:
            self._send_body(body)

    def _send_body(self, body: OutgoingBody) -> None:
        """Piece by piece, so that the time limit is one of silence; what the server
        says before its end ends it."""
        self.is_cut = True
        # Over TLS what comes may be a session ticket, or a 1xx: it is only looked at
        # when nothing more can be sent.
        self._listens = not isinstance(self.sock, ssl.SSLSocket)
        exchange = current_exchange()
        if exchange is not None:
            exchange.sent_at = None
        for block in body.blocks:
            if not self._send_block(memoryview(block), body.timeout_s, exchange):
                break
        else:
            self.is_cut = False
        if exchange is not None:
            exchange.sent_at = exchange.clock()

    def _send_block(
        self, view: memoryview, timeout_s: float, exchange: Exchange | None
    ) -> bool:
        """Send it; False: the server has answered, or hung up."""
        self.sock.settimeout(timeout_s)
        while view:
            if exchange is not None:
                exchange.begin_wait()
            size = self.sock.send(view) if self._may_send(timeout_s) else 0
            if exchange is not None:
                exchange.end_wait(size)
            if not size:
                return False
            view = view[size:]
        return True

    def _may_send(self, timeout_s: float) -> bool:
        """Wait until more can be sent; False: there is something to read instead.
        Raises TimeoutError."""
        happened = _happened(
            self.sock,
            select.POLLOUT | (select.POLLIN if self._listens else 0),
            timeout_s,
        )
        if happened & select.POLLIN and self._listens:
            said = _peeked(self.sock)
            if _INTERIM.match(said):
                self._listens = False  # it stays there to be read
                return self._may_send(timeout_s)
            if (
                said and len(said) < _KNOWN_BY
            ):  # of what it is the beginning will be known with the next piece
                return bool(
                    _happened(self.sock, select.POLLOUT, timeout_s) & select.POLLOUT
                )
        if happened:
            return not happened & ~select.POLLOUT
        if _happened(self.sock, select.POLLIN, 0):
            return False
        raise TimeoutError("nothing more could be sent")

    def getresponse(self) -> Any:
        """The answer itself, which urllib3 would wrap."""
        self.sock.settimeout(self.timeout)
        return _Plain.getresponse(self)

    def close(self) -> None:
        if self._breaker is not None:
            self._breaker.release()
            self._breaker = None
        self.idle_since = 0.0
        self.is_cut = False
        super().close()


class _WatchedTls(_Watched, HTTPSConnection):
    """The same over TLS, where only close_notify ends a connection: without it a body
    may have been cut.

    RFC 9112 section 9.8.
    """

    def connect(self) -> None:
        super().connect()
        cast(
            Any, self.sock
        ).suppress_ragged_eofs = (
            False  # of an SSLSocket, and of urllib3's TLS within TLS
        )


class _IdleLimit(urllib3.HTTPConnectionPool):
    """A pool that closes idle connections: servers close them, and each takes a
    descriptor on both sides."""

    idle_closer: IdleCloser

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = cast(Any, super()._get_conn(timeout))
        if (
            connection.idle_since
            and time.monotonic() - connection.idle_since > self.idle_closer.max_idle_s
        ):
            connection.close()
        return connection

    def _put_conn(self, conn: Any) -> None:
        if conn is not None and conn.is_cut:
            conn.close()
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)
        if conn is not None:
            self.idle_closer.watch(self)

    def close_idle(self, max_idle_s: float) -> float | None:
        """Close connections idle for ``max_idle_s``; return seconds until the next is
        due, None if none is idle."""
        idle: Any = self.pool
        if idle is None:  # the pool is closed
            return None
        now, expired, since = time.monotonic(), [], []
        with idle.mutex:
            for index, connection in enumerate(idle.queue):
                if connection is None or not connection.idle_since:
                    continue
                if now - connection.idle_since < max_idle_s:
                    since.append(connection.idle_since)
                    continue
                idle.queue[index] = None  # urllib3 opens a new connection for None
                expired.append(connection)
        for connection in expired:
            connection.close()
        return max_idle_s - (now - min(since)) if since else None


class _IdleLimitTls(_IdleLimit, urllib3.HTTPSConnectionPool):
    """The same over TLS."""


def _happened(sock: socket.socket, events: int, timeout_s: float) -> int:
    """Which of ``events``, or of errors, a socket has; 0 after the time limit."""
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(timeout_s * 1000)
    return found[0][1] if found else 0


def _peeked(sock: socket.socket) -> bytes:
    """The first bytes of what has come, which stay there to be read; none if the peer
    has hung up."""
    with suppress(OSError):
        return sock.recv(_KNOWN_BY, socket.MSG_PEEK)
    return b""


def pool_classes(
    network_policy: NetworkPolicy, idle_closer: IdleCloser
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return urllib3 pool classes, by scheme, that apply the network policy and close
    idle connections."""
    policy = {"network_policy": network_policy}
    plain = type("WatchedConnection", (_Watched,), policy)
    tls = type("WatchedTlsConnection", (_WatchedTls,), policy)
    return {
        "http": type(
            "WatchedPool",
            (_IdleLimit,),
            {"ConnectionCls": plain, "idle_closer": idle_closer},
        ),
        "https": type(
            "WatchedTlsPool",
            (_IdleLimitTls,),
            {"ConnectionCls": tls, "idle_closer": idle_closer},
        ),
    }


def connect(
    host: str,
    port: int,
    timeout_s: float | None,
    policy: NetworkPolicy,
    watch: Callable[[socket.socket], None],
) -> socket.socket:
    """Connect to the first address of ``host`` that answers, all within
    ``timeout_s``.

    Every address is checked against the network policy first. ``watch`` sees each
    socket before it connects. Raises NameNotResolved, Unreachable, TimedOut or
    PolicyRefused.
    """
    addresses = _resolve(
        host.strip("[]").replace("%25", "%"), port
    )  # %25: a zone, RFC 6874
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    failure: RetryRange = Unreachable(f"{host} has no usable address")
    for index, (family, address) in enumerate(addresses):
        policy.check(address[0])
        limit = None
        if (
            deadline is not None
        ):  # keep half of what is left for the addresses behind this one
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
        if not has_free_descriptors(1):  # the resolver does not report the cause
            raise OutOfDescriptors(f"cannot resolve {host}: {_TOO_MANY}") from error
        is_own = error.errno == socket.EAI_AGAIN
        reason = f"the name {host} cannot be resolved ({error.strerror})"
        raise NameNotResolved(reason, is_own_network=is_own, is_away=True) from error
    except OSError as error:  # EAI_SYSTEM, getaddrinfo(3)
        raise _unreachable(host, error) from error
    except UnicodeError as error:
        raise NameNotResolved(f"{host!r} is no host name") from error
    return [(family, address) for family, _kind, _protocol, _name, address in found]


def _connect_one(
    family: int,
    address: tuple[Any, ...],
    timeout_s: float | None,
    watch: Callable[[socket.socket], None],
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
            raise TimedOut(
                f"connecting to {place} took longer than the connect timeout",
                is_away=True,
            ) from error
        if isinstance(error, OSError):
            raise _unreachable(place, error) from error
        raise


def _unreachable(place: str, error: OSError) -> RetryRange:
    reason = error.strerror or str(error)
    if is_out_of_descriptors(error):
        return OutOfDescriptors(f"cannot connect to {place}: {_TOO_MANY}")
    if error.errno == errno.ECONNRESET:
        return ConnectionBroken(f"{place} reset the connection")
    is_own = error.errno in _OWN_NETWORK
    return Unreachable(
        f"{place} cannot be reached ({reason})", is_own_network=is_own, is_away=True
    )
