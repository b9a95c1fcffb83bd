"""Adapt urllib3: connections that can be cancelled, and pools that close idle ones.

This is the only module that overrides or calls private members of urllib3. A contract
test (``tests/test_library_contracts.py``) fails when a release of urllib3 changes them.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from typing import Any, cast

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection

from dlpool.transfer.http.cancellable import (
    CancellableConnection,
    PooledResponse,
    TargetedHeaders,
)
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.policy import NetworkPolicy
from dlpool.transfer.http.tls import ResumingSocket


class _CancellableConnection(CancellableConnection, HTTPConnection):  # type: ignore[misc]
    """A cancellable connection of urllib3."""


class _CancellableTlsConnection(_CancellableConnection, HTTPSConnection):  # type: ignore[misc]
    """A cancellable connection over TLS.

    A connection that closes without close_notify is an error: its body may be
    truncated. See RFC 9112 section 9.8.
    """

    _is_session_kept = True

    def connect(self) -> None:
        super().connect()
        # on SSLSocket and on urllib3's TLS-in-TLS transport
        cast(Any, self.sock).suppress_ragged_eofs = False
        self._is_session_kept = not isinstance(self.sock, ResumingSocket)

    def getresponse(self) -> Any:
        sock = self.sock
        response = super().getresponse()
        if not self._is_session_kept:
            self._is_session_kept = True
            cast(ResumingSocket, sock).keep_session()
        return response


class ExpiringPool(urllib3.HTTPConnectionPool):
    """A pool that closes idle connections, because each occupies a descriptor."""

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
        if conn is not None and conn.is_incomplete:
            conn.close()
        if conn is not None:
            conn.idle_since = time.monotonic()
        super()._put_conn(conn)
        if conn is not None:
            self.idle_closer.watch(self)

    def preconnect(self, timeout_s: float) -> Callable[[], None]:
        """Take a connection; return a function that opens it and puts it back."""
        connection = self._get_conn()

        def open_idle() -> None:
            try:
                if connection.sock is None:
                    connection.timeout = timeout_s
                    connection.connect()
            except BaseException:
                connection.close()
                raise
            finally:
                self._put_conn(connection)

        return open_idle

    def send_again(
        self, method: str, headers: TargetedHeaders, timeout_s: float
    ) -> PooledResponse | None:
        """Send a request over an idle connection, and return its response.

        Returns None if no connection is idle or a proxy is used: the caller must then
        call ``urlopen``, whose general preparations take as long as the request.
        ``timeout_s``: seconds without progress. Raises OSError and urllib3's HTTPError.
        """
        if self.proxy is not None:
            return None
        connection = self._get_conn()
        if connection.sock is None:
            super()._put_conn(connection)
            return None
        try:
            connection.timeout = timeout_s
            connection.request(method, "", headers=headers)
            response: PooledResponse = connection.getresponse()
        except BaseException as error:
            connection.close()
            super()._put_conn(None)
            if isinstance(error, http.client.HTTPException) and not isinstance(
                error, OSError
            ):
                raise urllib3.exceptions.ProtocolError(str(error), error) from error
            raise
        response._connection, response._pool = connection, self
        return response

    def close_idle(self, max_idle_s: float) -> float | None:
        """Close connections that were idle for ``max_idle_s`` seconds or more.

        Returns the seconds until the next connection expires, or None if no idle
        connection is left.
        """
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


class _ExpiringTlsPool(ExpiringPool, urllib3.HTTPSConnectionPool):
    """An expiring pool of TLS connections."""


def pool_classes(
    network_policy: NetworkPolicy, idle_closer: IdleCloser
) -> dict[str, type[urllib3.HTTPConnectionPool]]:
    """Return urllib3 pool classes, by scheme, that use this policy and this closer."""
    policy = {"network_policy": network_policy}
    plain = type("WatchedConnection", (_CancellableConnection,), policy)
    tls = type("WatchedTlsConnection", (_CancellableTlsConnection,), policy)
    return {
        "http": type(
            "WatchedPool",
            (ExpiringPool,),
            {"ConnectionCls": plain, "idle_closer": idle_closer},
        ),
        "https": type(
            "WatchedTlsPool",
            (_ExpiringTlsPool,),
            {"ConnectionCls": tls, "idle_closer": idle_closer},
        ),
    }
