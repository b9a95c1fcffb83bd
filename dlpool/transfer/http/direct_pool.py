"""Connection pools for plain HTTP without a proxy.

Most of urllib3 is for TLS and proxies, and its import takes longer than the fetch of a
small file. These pools have the methods of ``urllib3_adapter.ExpiringPool`` that a
response and the idle closer call.
"""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dlpool.transfer.http.cancellable import (
    CancellableConnection,
    PooledResponse,
    TargetedHeaders,
    poll_events,
)
from dlpool.transfer.http.exchange import OutgoingBody
from dlpool.transfer.http.idle_connections import MAX_HOSTS, IdleCloser
from dlpool.transfer.http.policy import NetworkPolicy

# Scheme, host and port of a URL. urllib3 gets all others, such as IPv6 addresses.
_SITE = re.compile(r"http://([a-z0-9.-]*[a-z0-9])(?::([0-9]{1,5}))?(?=/)")
_PORT = 80


class DirectConnection(CancellableConnection):
    """A connection over plain HTTP without a proxy."""

    def __init__(self, host: str, port: int, policy: NetworkPolicy) -> None:
        super().__init__(host, port)
        self._dns_host = host
        self.network_policy = policy

    def connect(self) -> None:
        """Connect. Raises the errors of ``connection.connect``."""
        self.sock = self._new_conn()


class DirectPool:
    """The connections to one host. Thread-safe; the lock guards ``_idle``."""

    def __init__(
        self,
        host: str,
        port: int,
        policy: NetworkPolicy,
        idle_closer: IdleCloser,
        size: int,
    ) -> None:
        """Prepare the pool, which keeps at most ``size`` idle connections."""
        self._host = host
        self._port = port
        self._policy = policy
        self._idle_closer = idle_closer
        self._size = size
        self._lock = threading.Lock()
        self._idle: list[DirectConnection] = []
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<DirectPool {self._host}:{self._port}, {len(self._idle)} idle>"

    def send(
        self,
        method: str,
        headers: TargetedHeaders,
        body: OutgoingBody | None,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> PooledResponse:
        """Send a request and return its response with the body unread.

        Raises OSError, http.client.HTTPException, or an error of ``connect``.
        """
        connection = self._take()
        try:
            if connection.sock is None:
                connection.timeout = connect_timeout_s
                connection.connect()
            connection.timeout = read_timeout_s
            self._request(connection, method, headers, body)
            response: PooledResponse = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        response._connection, response._pool = connection, self
        return response

    def preconnect(self, timeout_s: float) -> Callable[[], None]:
        """Return a function that opens a connection and keeps it idle."""
        connection = DirectConnection(self._host, self._port, self._policy)
        connection.timeout = timeout_s

        def open_idle() -> None:
            connection.connect()
            self._put_conn(connection)

        return open_idle

    @staticmethod
    def _request(
        connection: DirectConnection,
        method: str,
        headers: TargetedHeaders,
        body: OutgoingBody | None,
    ) -> None:
        if body is None:
            connection.request(method, "", headers=headers)
            return
        # A server that refuses a body may close the connection after its response.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, "", headers=headers, body=body)

    def _take(self) -> DirectConnection:
        """Return the idle connection that was used last.

        If no connection is idle, returns a new one that is not connected yet.
        """
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            idle_s = time.monotonic() - connection.idle_since
            # bytes or the end: the server has closed it
            is_dropped = poll_events(connection.sock, select.POLLIN, 0)
            if idle_s <= self._idle_closer.max_idle_s and not is_dropped:
                return connection
            connection.close()
        return DirectConnection(self._host, self._port, self._policy)

    def _put_conn(self, connection: DirectConnection) -> None:
        """Keep a connection for the next request. ``PooledResponse`` calls this."""
        if connection.is_incomplete or connection.sock is None:
            connection.close()
            return
        connection.idle_since = time.monotonic()
        with self._lock:
            is_kept = not self._is_closed and len(self._idle) < self._size
            if is_kept:
                self._idle.append(connection)
        if is_kept:
            self._idle_closer.watch(self)
        else:
            connection.close()

    def close_idle(self, max_idle_s: float) -> float | None:
        """Close connections idle for ``max_idle_s`` seconds.

        Returns the seconds until the next connection expires, or None if no connection
        is idle.
        """
        now = time.monotonic()
        with self._lock:
            expired = [one for one in self._idle if now - one.idle_since >= max_idle_s]
            self._idle = [one for one in self._idle if one not in expired]
            since = [one.idle_since for one in self._idle]
        for connection in expired:
            connection.close()
        return max_idle_s - (now - min(since)) if since else None

    def close(self) -> None:
        """Close the idle connections.

        Other connections are closed when they are returned.
        """
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


class DirectPools:
    """The pools of a process by host and port. Thread-safe; the lock guards them."""

    def __init__(
        self, policy: NetworkPolicy, idle_closer: IdleCloser, pool_size: int
    ) -> None:
        """Prepare the pools; each keeps ``pool_size`` idle connections."""
        self._policy = policy
        self._idle_closer = idle_closer
        self._pool_size = pool_size
        self._lock = threading.Lock()
        self._pools: dict[str, DirectPool] = {}

    def pool(self, url: str) -> DirectPool | None:
        """Return the pool for a URL, None if urllib3 must send the request."""
        site = _SITE.match(url)
        if site is None:
            return None
        with self._lock:
            pool = self._pools.get(site[0])
            if pool is not None:
                return pool
            dropped = (
                self._pools.pop(next(iter(self._pools)))
                if len(self._pools) >= MAX_HOSTS
                else None
            )
            pool = self._pools[site[0]] = DirectPool(
                site[1],
                int(site[2] or _PORT),
                self._policy,
                self._idle_closer,
                self._pool_size,
            )
        if dropped is not None:
            dropped.close()
        return pool

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
