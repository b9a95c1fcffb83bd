"""Where a connection goes: to the master that Sentinels name, a node of a Cluster, or the private server."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from redis import exceptions as errors
from redis.backoff import NoBackoff
from redis.connection import Connection
from redis.crc import key_slot
from redis.retry import Retry

from dlpool.jobs.connection_routing import (
    ANSWER_S,
    AutoConnection,
    ClusterRoute,
    Dialer,
    Host,
    RoutedConnection,
    SentinelRoute,
    format_hosts,
)
from tests.redis_server import RedisServer

A, B, C, D = ("a", 1), ("b", 2), ("c", 3), ("::1", 4)
SLOT = key_slot(b"key")


class Said(Dialer):
    """Answers as hosts would; ``asked`` notes whom, and of what."""

    def __init__(self, answers: dict[Host, Any]) -> None:
        super().__init__(Connection, {})
        self.answers = answers
        self.asked: list[tuple[tuple[Host, ...], tuple[str, ...]]] = []

    def ask(self, hosts: Sequence[Host], *command: str) -> tuple[Host, Any]:
        self.asked.append((tuple(hosts), command))
        return next((host, self.answers[host]) for host in hosts if host in self.answers)

    def client(self, host: Host) -> Any:
        return host


# --- a Cluster ---


@pytest.mark.parametrize(
    ("rows", "owner"),
    [
        ([[0, SLOT - 1, [b"a", 1]], [SLOT, SLOT, [b"b", 2]], [SLOT + 1, 16383, [b"c", 3]]], B),
        ([[SLOT, 16383, [b"a", 1]], [0, SLOT - 1, [b"b", 2]]], A),
        ([[0, SLOT, [b"a", 1]], [SLOT + 1, 16383, [b"b", 2]]], A),
        ([[SLOT + 1, 16383, [b"a", 1]], [0, SLOT - 1, [b"b", 2]]], None),
        ([[0, 16383, [b"", 7], [b"c", 3]]], ("a", 7)),  # it does not know its own host: the one that was asked
        ([[0, 16383, [None, 7]]], ("a", 7)),
        ([[b"0", b"16383", ["b", b"2"]]], B),
    ],
)
def test_a_key_is_on_the_node_that_has_its_slot(rows: list[Any], owner: Host | None) -> None:
    dialer = Said({A: rows})
    route = ClusterRoute([A], "key", dialer)
    for find in (route.find, lambda: route.client_for("key")):
        if owner is None:
            with pytest.raises(errors.ClusterDownError, match=f"no node has slot {SLOT}$"):
                find()
        else:
            assert find() == owner
    assert {command for _, command in dialer.asked} == {("CLUSTER", "SLOTS")}


def test_a_map_is_asked_for_once_until_it_proves_wrong() -> None:
    dialer = Said({A: [[0, 16383, [b"b", 2]]]})
    route = ClusterRoute([A], "key", dialer)
    assert [route.client_for(key) for key in ("key", "other", "third")] == [B, B, B]
    assert len(dialer.asked) == 1
    route.invalidate()
    dialer.answers = {A: [[0, 16383, [b"c", 3]]]}
    assert (route.client_for("key"), len(dialer.asked)) == (C, 2)
    assert (route.find(), route.find(), len(dialer.asked)) == (C, C, 4), "a new connection asks each time"
    dialer.answers = {A: [[0, 0, [b"c", 3]]]}
    with pytest.raises(errors.ClusterDownError):
        route.find()
    dialer.answers = {A: [[0, 16383, [b"b", 2]]]}
    assert route.client_for("key") == B, "a map without the slot is not kept"


def test_all_nodes_that_were_ever_named_last_are_asked() -> None:
    dialer = Said({A: [[0, 9999, [b"b", 2], [b"c", 3]], [10000, 16383, [b"a", 1]]]})
    route = ClusterRoute([A, D], "key", dialer)
    route.find()
    route.find()
    assert [sorted(hosts) for hosts, _ in dialer.asked] == [sorted([A, D]), sorted([A, B, C, D])]
    dialer.answers = {D: [[0, 16383, [b"b", 2]]]}
    route.find()
    route.find()
    assert sorted(dialer.asked[-1][0]) == sorted([A, B, D]), "the first ones are never forgotten"
    assert str(route) == "the Cluster of a:1,[::1]:4"


def test_a_node_that_is_cut_off_is_not_always_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    dialer = Said({A: [[0, 16383, [b"b", 2]]], B: [[0, 16383, [b"b", 2]]]})
    route = ClusterRoute([A, B], "key", dialer)
    for _ in range(64):
        route.find()
    assert {hosts[0] for hosts, _ in dialer.asked} == {A, B}


# --- Sentinels ---


def test_the_master_is_where_the_sentinels_say() -> None:
    dialer = Said({B: [b"10.0.0.1", b"6380"]})
    route = SentinelRoute([A, B], "main", dialer)
    assert route.find() == ("10.0.0.1", 6380)
    assert dialer.asked == [((A, B), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"))]
    assert str(route) == "main of the Sentinels a:1,b:2"


def test_hosts_are_shown_for_messages() -> None:
    assert format_hosts([A, D]) == "a:1,[::1]:4"


# --- asking ---


@contextmanager
def answering(answer: bytes | None) -> Iterator[Host]:
    """A server that answers each command with these bytes, after those that say who connects; None: it hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    accepted, _ = server.accept()
                    with accepted:
                        while (data := accepted.recv(65536)) and answer is not None:
                            commands = re.split(rb"\*[0-9]+\r\n", data)[1:]
                            said = [b"+OK\r\n" if b"SETINFO" in command else answer for command in commands]
                            accepted.sendall(b"".join(said))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()
        server.shutdown(socket.SHUT_RDWR)


def dialer_of(**options: Any) -> Dialer:
    return Dialer(Connection, {"retry_on_timeout": False, "protocol": 2, **options})


def test_the_first_host_that_answers_with_something_counts() -> None:
    with answering(None) as silent, answering(b"*-1\r\n") as empty, answering(b"$2\r\nhi\r\n") as good:
        dialer = dialer_of()
        for order in ([silent, empty, good], [good, silent], [empty, good]):
            assert dialer.ask(order, "ECHO", "hi") == (good, b"hi")
        with pytest.raises(errors.ConnectionError, match=rf"^none of 127.0.0.1:{empty[1]} says .*: they do not know"):
            dialer.ask([empty], "ECHO")
        with pytest.raises(errors.ConnectionError, match=r"^none of .*closed"):
            dialer.ask([empty, silent], "ECHO")


def test_a_host_that_refuses_is_no_reason_to_ask_the_next_one() -> None:
    with answering(b"-NOAUTH Authentication required.\r\n") as locked, answering(b"$2\r\nhi\r\n") as good:
        with pytest.raises(errors.AuthenticationError):
            dialer_of().ask([locked, good], "ECHO", "hi")
        assert dialer_of().ask([good, locked], "ECHO", "hi") == (good, b"hi")


def test_a_host_has_one_client_with_the_options_but_for_the_address() -> None:
    dialer = dialer_of(host="elsewhere", port=99, db=3, username="u", socket_timeout=77.0, socket_connect_timeout=77.0)
    client = dialer.client(A)
    assert dialer.client(A) is client and dialer.client(B) is not client
    options = client.connection_pool.connection_kwargs
    assert (options["host"], options["port"], options["username"], "db" in options) == ("a", 1, "u", False)
    assert options["socket_timeout"] == options["socket_connect_timeout"] == ANSWER_S


def test_two_threads_share_the_client_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    both = threading.Barrier(2)
    pool = redis.ConnectionPool

    def slowly(**options: Any) -> redis.ConnectionPool:
        made.append(options)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # a second one comes in time only where nothing keeps it out
        return pool(**options)

    monkeypatch.setattr(redis, "ConnectionPool", slowly)
    dialer, found = dialer_of(), []
    threads = [threading.Thread(target=lambda: found.append(dialer.client(A))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(made) == 1 and found[0] is found[1]


# --- connections ---


class Fixed:
    """A route that never changes, and counts."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.found = 0

    def find(self) -> Host:
        self.found += 1
        return self.host


@pytest.mark.parametrize(
    ("error", "asks_again"),
    [
        (b"READONLY You can't write against a read only replica.", True),
        (b"ERR Error running script: -READONLY You can't write", True),
        (b"NOREPLICAS Not enough good replicas to write.", True),
        (b"MOVED 3999 127.0.0.1:6381", True),
        (b"ERR syntax error", False),
        (b"WRONGTYPE Operation against a key", False),
        (b"OOM command not allowed", False),
    ],
)
def test_after_an_answer_that_another_server_is_the_right_one_the_next_command_asks(
    error: bytes, asks_again: bool
) -> None:
    with answering(b"-" + error + b"\r\n") as host:
        route = Fixed(host)
        connection: Any = RoutedConnection(route=route, protocol=2, retry=Retry(NoBackoff(), 0), socket_timeout=20)
        for _ in range(2):
            connection.send_command("GET", "x")
            with pytest.raises(errors.ResponseError):
                connection.read_response()
        assert route.found == 1 + asks_again
        assert (connection.host, connection.port) == host
        connection.disconnect()


def auto(path: Path, port: int, **options: Any) -> Any:
    plain: dict[str, Any] = {"protocol": 2, "host": "127.0.0.1", "port": port}
    return AutoConnection(path=str(path), **{**plain, "socket_connect_timeout": 5.0, "socket_timeout": 7.0, **options})


def test_the_private_server_is_asked_first_and_without_a_password(redis_server: RedisServer, tmp_path: Path) -> None:
    """It has none; the one over TCP gets user and password again when the private one has gone."""
    with answering(b"+OK\r\n") as (_, port):
        connection = auto(redis_server.socket, port, username="u", password="p")
        connection.connect()
        assert (connection.username, connection.password) == (None, None)
        assert (connection._sock.family, connection._sock.gettimeout()) == (socket.AF_UNIX, 7.0)
        connection.disconnect()
        connection._path = str(tmp_path / "none.sock")
        connection.connect()
        assert (connection.username, connection.password) == ("u", "p")
        assert connection._sock.family == socket.AF_INET
        connection.disconnect()


@pytest.mark.parametrize("kind", ["missing", "no folder", "nobody listens"])
def test_without_a_private_server_the_other_one_is_asked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "no folder":
        path.touch()
        path = path / "below"
    elif kind == "nobody listens":
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    with answering(b"+OK\r\n") as (_, port):
        connection = auto(path, port)
        connection.connect()
        assert connection._private() is None
        connection.disconnect()


@pytest.mark.parametrize("error", [FileNotFoundError(), ConnectionRefusedError(), PermissionError(), TimeoutError()])
def test_no_socket_is_left_of_a_private_server_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """One that does not accept is an error; one that is not there is not."""
    closed: list[float | None] = []

    class Refusing(socket.socket):
        def connect(self, _address: Any) -> None:
            raise error

        def close(self) -> None:
            closed.append(self.gettimeout())
            super().close()

    monkeypatch.setattr(socket, "socket", Refusing)
    connection = auto(tmp_path / "s", 1)
    if isinstance(error, PermissionError | TimeoutError):
        with pytest.raises(type(error)):
            connection._private()
    else:
        assert connection._private() is None
    assert closed == [5.0], "it waits no longer than for a connection"
