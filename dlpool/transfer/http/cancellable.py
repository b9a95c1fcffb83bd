"""Connections that other threads can shut down, and their responses.

Both are subclasses of http.client's classes. ``direct_pool`` uses them as they are;
``urllib3_adapter`` combines them with urllib3's connections.
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from dlpool.transfer.http.connection import connect
from dlpool.transfer.http.exchange import (
    Exchange,
    OutgoingBody,
    SocketShutdown,
    current_exchange,
)
from dlpool.transfer.http.http_client_adapter import StrictResponse
from dlpool.transfer.http.policy import ANY_NETWORK

# RFC 9110 section 15.2; some servers send one unrequested
_INTERIM = re.compile(rb"HTTP/1\.[01] 1")
_PEEK_BYTES = 10  # bytes: enough to match _INTERIM
# states of http.client's connection
_IDLE, _REQUEST_SENT = "Idle", "Request-sent"
_PLAIN_HOST = re.compile(r"[a-z0-9.-]+")
# its methods are called directly, without urllib3's overrides
_HttpClientConnection = http.client.HTTPConnection


class TargetedHeaders(dict[str, str]):
    """The header fields of a request, together with its target.

    urllib3 would rewrite a target that is passed as the URL.
    """

    def __init__(self, target: str, fields: Mapping[str, str]) -> None:
        super().__init__(fields)
        self.target = target

    def copy(self) -> TargetedHeaders:
        """Return a copy, to which urllib3 adds the fields for a proxy."""
        return TargetedHeaders(self.target, self)


def usual_head(method: str, host: str, headers: TargetedHeaders) -> bytes | None:
    """Return the head (RFC 9112 section 3) of a request that has no body.

    ``host``: the value of ``Host``. Returns None if ``headers`` have a ``Host``, or a
    character that only http.client's checks can judge.
    """
    lines = [f"{method} {headers.target} HTTP/1.1", f"Host: {host}"]
    for name, value in headers.items():
        if name.lower() == "host":
            return None
        lines.append(f"{name}: {value}")
    head = "\r\n".join((*lines, "", ""))
    line_ends = len(lines) + 1
    is_usual = head.count("\r") == head.count("\n") == line_ends
    if not (is_usual and head.isascii() and "\0" not in head):
        return None
    return head.encode("ascii")


class PooledResponse(StrictResponse):
    """A response with the attributes that urllib3's pools and requests use."""

    retries: Any = None
    version_string = "HTTP/1.1"
    _pool: Any = None
    _connection: Any = None

    @property
    def length_remaining(self) -> int | None:
        """Return the bytes of the body that are not read yet, None if unknown."""
        return self.length

    @property
    def _original_response(self) -> PooledResponse:
        """Return the object in which the library requests looks for cookies."""
        return self

    def release(self) -> None:
        """Return the connection to its pool after a complete body, else close it."""
        connection, self._connection = self._connection, None
        is_read = self.isclosed() or self.length == 0
        self.close()
        if connection is not None and is_read:
            self._pool._put_conn(connection)
        elif connection is not None:
            connection.close()


class CancellableConnection(http.client.HTTPConnection):
    """A connection that the exchange in progress can shut down."""

    response_class = PooledResponse
    proxy: Any = None
    socket_options: Any = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
    _dns_host: str
    network_policy = ANY_NETWORK
    idle_since = 0.0
    is_incomplete = False  # a request has been sent only in part
    # whether bytes received while a body is sent are a response
    _detects_response = True
    _shutdown: SocketShutdown | None = None

    def _new_conn(self) -> socket.socket:
        policy = ANY_NETWORK if self.proxy else self.network_policy
        timeout = self.timeout if isinstance(self.timeout, (int, float)) else None
        sock = connect(
            self._dns_host, self.port, timeout, policy, self._register_socket
        )
        exchange = current_exchange()
        if exchange is not None and exchange.on_connect is not None:
            exchange.on_connect(sock)
        return sock

    def _register_socket(self, sock: socket.socket) -> None:
        for option in self.socket_options or []:
            sock.setsockopt(*option)
        if self._shutdown is not None:
            self._shutdown.release()
        self._shutdown = SocketShutdown(sock)
        exchange = current_exchange()
        if exchange is not None:
            exchange.attach(self._shutdown)

    def request(  # type: ignore[override]
        self,
        method: str,
        _url: str,
        *,
        headers: TargetedHeaders,
        body: OutgoingBody | None = None,
        **_: Any,
    ) -> None:
        """Send a request. ``headers`` are complete except for Host and Content-Length.

        The request target is ``headers.target``; ``_url`` is ignored.
        """
        exchange = current_exchange()
        if exchange is not None:
            exchange.is_reused = self.sock is not None and self.idle_since > 0
            if self._shutdown is not None:
                exchange.attach(self._shutdown)
        if self.sock is not None:
            self._set_timeout()
        if body is None and self._send_usual_head(method, headers):
            return
        has_host = any(name.lower() == "host" for name in headers)
        _HttpClientConnection.putrequest(
            self, method, headers.target, skip_host=has_host, skip_accept_encoding=True
        )
        for name, value in headers.items():
            _HttpClientConnection.putheader(self, name, value)
        if body is not None:
            _HttpClientConnection.putheader(self, "Content-Length", str(body.size))
        self.endheaders()
        if body is not None:
            self._send_body(body)

    def _send_usual_head(self, method: str, headers: TargetedHeaders) -> bool:
        """Send a request of the usual form, if the connection is open and idle.

        Otherwise sends nothing and returns False: http.client must send the request.
        http.client is slower, because it checks and copies each field separately.
        """
        state: Any = self
        previous = state._HTTPConnection__response
        if (
            self.sock is None
            or self.proxy is not None
            or state._HTTPConnection__state != _IDLE
            or not (previous is None or previous.isclosed())
            or not _PLAIN_HOST.fullmatch(self.host)
        ):
            return False
        host = self.host
        if self.port != self.default_port:
            host = f"{host}:{self.port}"
        head = usual_head(method, host, headers)
        if head is None:
            return False
        state._HTTPConnection__response = None
        state._method = method
        self.sock.sendall(head)
        state._HTTPConnection__state = _REQUEST_SENT
        return True

    def _set_timeout(self) -> None:
        """Set the timeout of the socket, unless it is set already.

        The check saves a system call.
        """
        if self.sock.gettimeout() != self.timeout:
            self.sock.settimeout(self.timeout)

    def _send_body(self, body: OutgoingBody) -> None:
        """Send the body block by block; stop when the server responds early.

        The timeout limits the time without progress, not the total time.
        """
        self.is_incomplete = True
        # Over TLS the received bytes may be a session ticket or a 1xx: read them only
        # when nothing more can be sent.
        self._detects_response = not isinstance(self.sock, ssl.SSLSocket)
        exchange = current_exchange()
        if exchange is not None:
            exchange.sent_at = None
        for block in body.blocks:
            if not self._send_block(memoryview(block), body.timeout_s, exchange):
                break
        else:
            self.is_incomplete = False
        if exchange is not None:
            exchange.sent_at = exchange.clock()

    def _send_block(
        self, view: memoryview, timeout_s: float, exchange: Exchange | None
    ) -> bool:
        """Send ``view``; return False if the server has responded or closed."""
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
        """Wait until the socket accepts data.

        Returns False if there is a response to read, or if the connection has ended.
        Raises TimeoutError.
        """
        events_found = poll_events(
            self.sock,
            select.POLLOUT | (select.POLLIN if self._detects_response else 0),
            timeout_s,
        )
        if events_found & select.POLLIN and self._detects_response:
            received = _peek(self.sock)
            if _INTERIM.match(received):
                self._detects_response = False  # getresponse skips it
                return self._may_send(timeout_s)
            if received and len(received) < _PEEK_BYTES:
                # too short to recognise a 1xx: look again before the next block
                return bool(
                    poll_events(self.sock, select.POLLOUT, timeout_s) & select.POLLOUT
                )
        if events_found:
            return not events_found & ~select.POLLOUT
        if poll_events(self.sock, select.POLLIN, 0):
            return False
        raise TimeoutError("the server accepts no more of the body")

    def getresponse(self) -> Any:
        """Return the http.client response, without urllib3's wrapper."""
        sock = self.sock  # http.client forgets it when the server will close
        self._set_timeout()
        response: Any = _HttpClientConnection.getresponse(self)
        response.tls_socket = sock if isinstance(sock, ssl.SSLSocket) else None
        return response

    def close(self) -> None:
        if self._shutdown is not None:
            self._shutdown.release()
            self._shutdown = None
        self.idle_since = 0.0
        self.is_incomplete = False
        super().close()


def poll_events(sock: socket.socket, events: int, timeout_s: float) -> int:
    """Wait up to ``timeout_s`` seconds for ``events`` or an error on the socket.

    Returns the bits of the events that occurred, ``POLLERR`` and ``POLLHUP`` included
    (see poll(2)), or 0 after the timeout.
    """
    poll = select.poll()
    poll.register(sock, events)
    found = poll.poll(timeout_s * 1000)
    return found[0][1] if found else 0


def _peek(sock: socket.socket) -> bytes:
    """Return the first bytes that can be received, without removing them.

    Empty if the peer has closed the connection, or after an error.
    """
    with suppress(OSError):
        return sock.recv(_PEEK_BYTES, socket.MSG_PEEK)
    return b""
