"""Connections that ask where their server is, anew each time they connect: Sentinels,
or the nodes of a Cluster.

redis-py's own client of a Cluster repeats commands and sleeps; here as elsewhere
nothing is repeated below the transitions. As dlpool's own keys share a slot, one node
has them all, and a connection to it is like any other.
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

ANSWER_S = (
    2.0  # what is asked for where to go answers at once, or the next one is asked
)
Host = tuple[str, int]

_SILENT = (errors.ConnectionError, errors.TimeoutError)
# A script's error has it in its midst. A master that lost its replicas may have lost
# its office, and not know it yet.
_ELSEWHERE = re.compile(r"\b(?:READONLY|NOREPLICAS)\b")
_REFUSED = (
    errors.AuthenticationError,
    errors.AuthorizationError,
)  # redis-py counts them as connection errors


class ServerRoute(Protocol):
    """Knows where a server is now; its text says so for messages. Thread-safe."""

    def find(self) -> Host:
        """The server's host and port. Raises redis-py's errors."""


class AutoConnection(Connection):
    """A connection to the private server of a supervisor if it runs, without a
    password, else over TCP."""

    def __init__(self, *, path: str, **options: Any) -> None:
        self._path = path
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._credentials = (self.username, self.password)

    def _connect(self) -> Any:
        private = self._private()
        self.username, self.password = (
            (None, None) if private is not None else self._credentials
        )
        return private if private is not None else super()._connect()  # type: ignore[no-untyped-call]

    def _private(self) -> socket.socket | None:
        """Return a connected socket, None where no server listens. Raises OSError for
        one that does not accept."""
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
    """A connection over TCP to whatever server its route finds."""

    def __init__(self, *, route: ServerRoute, **options: Any) -> None:
        self._route = route
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def _connect(self) -> Any:
        self.host, self.port = self._route.find()
        return super()._connect()  # type: ignore[no-untyped-call]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """As redis-py's; after an answer that another server is (or may be) the right
        one, the next command asks."""
        try:
            return super().read_response(*arguments, **options)
        except errors.ResponseError as error:
            if isinstance(
                error, errors.ReadOnlyError | errors.MovedError
            ) or _ELSEWHERE.search(str(error)):
                self.disconnect()  # type: ignore[no-untyped-call]
            raise


class RoutedTlsConnection(RoutedConnection, SSLConnection):
    """The same over TLS; the certificate must be for the host that the route names."""


class Dialer:
    """Makes clients of any host with the options of one connection. Thread-safe: the
    lock guards those made."""

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
        """The client of that host."""
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
        """Who answered first, in that order, with something, and what. Raises
        redis-py's errors if nobody did."""
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
    """The master of a service, by the first Sentinel that knows it."""

    def __init__(self, sentinels: Sequence[Host], service: str, dialer: Dialer) -> None:
        self._sentinels = sentinels
        self._service = service
        self._dialer = dialer

    def __str__(self) -> str:
        return f"{self._service} of the Sentinels {format_hosts(self._sentinels)}"

    def find(self) -> Host:
        """The master's host and port. Raises redis-py's errors."""
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        _, (host, port) = self._dialer.ask(self._sentinels, *command)
        return _text(host), int(port)


class ClusterRoute:
    """The node of a Cluster that has the slot of ``key``, and clients of those that
    have others.

    The lock guards the map of slots, and the nodes that were seen last.
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
        """The host and port of the node that has the key's slot now. Raises redis-py's
        errors."""
        return self._owner(self._look(), self._key)

    def client_for(self, key: str) -> Any:
        """A client of the node that has the slot of ``key``, by the map as it was last.
        Raises redis-py's errors."""
        with self._lock:
            owners = self._owners
        return self._dialer.client(self._owner(owners or self._look(), key))

    def invalidate(self) -> None:
        """The map is wrong: the next call looks."""
        with self._lock:
            self._owners = ()

    def _owner(self, owners: tuple[tuple[int, int, Host], ...], key: str) -> Host:
        slot = key_slot(key.encode())
        for first, last, host in owners:
            if first <= slot <= last:
                return host
        self.invalidate()
        raise errors.ClusterDownError(f"no node has slot {slot}")

    def _look(self) -> tuple[tuple[int, int, Host], ...]:
        with self._lock:
            nodes = list(self._known)
        random.shuffle(nodes)  # one that is cut off need not be asked again and again
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
    """Hosts and ports for messages."""
    return ",".join(
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in hosts
    )


def _node(row: Sequence[Any], asked: Host) -> Host:
    """A node of CLUSTER SLOTS; one that does not know its own host is where it was
    asked."""
    return _text(row[0] or b"") or asked[0], int(row[1])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
