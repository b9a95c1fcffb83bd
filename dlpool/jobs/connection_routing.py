"""Connections that find their server each time they connect: through Sentinels, through
Cluster nodes, or at the socket of the private server.

redis-py's own Cluster client is not used: it sleeps and repeats commands, and a
repeated push would queue a job again. All of dlpool's own keys are in one hash slot, so
an ordinary connection to the node with that slot suffices.
"""

from __future__ import annotations

import random
import re
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import redis
from redis import exceptions as errors
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot

ANSWER_S = 2.0  # timeout of a Sentinel or node before the next one is asked
Host = tuple[str, int]

_SILENT = (errors.ConnectionError, errors.TimeoutError)
# Found in the middle of a script's error. A master without replicas may have been
# replaced without knowing it.
_WRONG_SERVER = re.compile(r"\b(?:READONLY|NOREPLICAS)\b")
# subclasses of ConnectionError in redis-py
_REFUSED = (errors.AuthenticationError, errors.AuthorizationError)


class ServerRoute(Protocol):
    """A way to find the present address of a server. ``str(route)`` names the server in
    messages. Thread-safe."""

    def find(self) -> Host:
        """Return the server's host and port. Raises errors of redis-py."""


class AutoConnection(Connection):
    """A connection to the supervisor's private server, without a password, if that
    server runs.

    Otherwise a TCP connection to the host and port of ``options``.
    """

    def __init__(self, *, path: str, **options: Any) -> None:
        self._path = path
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._credentials = (self.username, self.password)

    def _connect(self) -> Any:
        private = self._private()
        self.username, self.password = (
            (None, None) if private is not None else self._credentials
        )
        if private is not None:
            return private
        return super()._connect()  # type: ignore[no-untyped-call]

    def _private(self) -> socket.socket | None:
        """Return a connected socket; None if no server listens. Raises OSError for
        other errors."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self.socket_connect_timeout)
            sock.connect(self._path)
            sock.settimeout(self.socket_timeout)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            sock.close()
            return None
        except BaseException:
            sock.close()
            raise
        return sock


class RoutedConnection(Connection):
    """A connection over TCP to the server that its route finds."""

    def __init__(self, *, route: ServerRoute, **options: Any) -> None:
        self._route = route
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        self.host, self.port = self._route.find()
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Read a response. If the response shows that this is no longer the right
        server, disconnect; the next command then connects to the right server."""
        try:
            return super().read_response(*arguments, **options)
        except errors.ResponseError as error:
            if isinstance(
                error, errors.ReadOnlyError | errors.MovedError
            ) or _WRONG_SERVER.search(str(error)):
                self.disconnect()  # type: ignore[no-untyped-call]
            raise


class RoutedTlsConnection(RoutedConnection, SSLConnection):
    """A connection over TLS to the server that its route finds. The certificate must be
    valid for the host of that server."""


class Dialer:
    """A collection of clients, one per host, with the same connection options.
    Thread-safe: the lock guards the clients."""

    def __init__(
        self, connection_class: type[Connection], options: Mapping[str, Any]
    ) -> None:
        self._class = connection_class
        short = {"socket_connect_timeout": ANSWER_S, "socket_timeout": ANSWER_S}
        self._options = {
            name: value
            for name, value in options.items()
            if name not in ("host", "port", "db")
        } | short
        self._lock = threading.Lock()
        self._clients: dict[Host, Any] = {}

    def client(self, host: Host) -> Any:
        """Return the client of a host, created on first use."""
        with self._lock:
            if host not in self._clients:
                pool = redis.ConnectionPool(
                    connection_class=self._class,
                    host=host[0],
                    port=host[1],
                    **self._options,
                )
                self._clients[host] = redis.Redis.from_pool(pool)
            return self._clients[host]

    def ask(self, hosts: Sequence[Host], *command: str) -> tuple[Host, Any]:
        """Send a command to one host after the other, until a host gives a non-empty
        answer. Return this host and its answer. Raises errors of redis-py."""
        last: Exception | str = "they do not know it"
        for host in hosts:
            try:
                answer = self.client(host).execute_command(*command)
            except _REFUSED:
                raise
            except _SILENT as error:
                last = error
                continue
            if answer:
                return host, answer
        raise errors.ConnectionError(
            f"none of {format_hosts(hosts)} says where it is: {last}"
        )


class SentinelRoute:
    """A route to the master of a service. The first Sentinel that knows the service
    names the master."""

    def __init__(self, sentinels: Sequence[Host], service: str, dialer: Dialer) -> None:
        self._sentinels = sentinels
        self._service = service
        self._dialer = dialer

    def __str__(self) -> str:
        return f"{self._service} of the Sentinels {format_hosts(self._sentinels)}"

    def find(self) -> Host:
        """Return the master's host and port. Raises errors of redis-py."""
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        _, (host, port) = self._dialer.ask(self._sentinels, *command)
        return _text(host), int(port)


class ClusterRoute:
    """A route to the Cluster node that has the slot of ``key``. It has clients of the
    nodes with other slots, too.

    The lock guards the slot map and the known nodes.
    """

    def __init__(self, nodes: Sequence[Host], key: str, dialer: Dialer) -> None:
        self._seeds = tuple(nodes)
        self._key = key
        self._dialer = dialer
        self._lock = threading.Lock()
        self._known: set[Host] = set(nodes)
        self._owners: tuple[tuple[int, int, Host], ...] = ()

    def __str__(self) -> str:
        return f"the Cluster of {format_hosts(self._seeds)}"

    def find(self) -> Host:
        """Read the slot map again, and return the host and port of the node that has
        the slot of the route's key. Raises errors of redis-py."""
        return self._owner(self._read_slots(), self._key)

    def client_for(self, key: str) -> Any:
        """Return a client of the node that has the slot of ``key``. Reads the slot map
        only if there is none. Raises errors of redis-py."""
        with self._lock:
            owners = self._owners
        return self._dialer.client(self._owner(owners or self._read_slots(), key))

    def invalidate(self) -> None:
        """Discard the slot map, so that the next call of ``client_for`` reads it
        again."""
        with self._lock:
            self._owners = ()

    def _owner(self, owners: tuple[tuple[int, int, Host], ...], key: str) -> Host:
        slot = key_slot(key.encode())
        for first, last, host in owners:
            if first <= slot <= last:
                return host
        self.invalidate()
        raise errors.ClusterDownError(f"no node has slot {slot}")

    def _read_slots(self) -> tuple[tuple[int, int, Host], ...]:
        with self._lock:
            nodes = list(self._known)
        random.shuffle(nodes)  # so that an unreachable node is not always asked first
        asked, rows = self._dialer.ask(nodes, "CLUSTER", "SLOTS")
        owners = tuple((int(row[0]), int(row[1]), _node(row[2], asked)) for row in rows)
        with self._lock:
            self._owners = owners
            self._known = {
                *self._seeds,
                *(_node(node, asked) for row in rows for node in row[2:]),
            }
        return owners


def format_hosts(hosts: Sequence[Host]) -> str:
    """Return hosts and ports as text for messages."""
    return ",".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts
    )


def _node(row: Sequence[Any], asked: Host) -> Host:
    """Return the host and port of a node in the reply to CLUSTER SLOTS. If the reply
    names no host, the node is the one that sent the reply: ``asked``."""
    return _text(row[0] or b"") or asked[0], int(row[1])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
