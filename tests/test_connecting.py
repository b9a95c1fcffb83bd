"""Connecting: which addresses are tried and for how long, what each failure is called, and which connections idle."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.http import connection, urllib3_adapter
from dlpool.transfer.http.cancellable import TargetedHeaders
from dlpool.transfer.http.connection import connect
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.policy import ANY_NETWORK, NetworkPolicy
from dlpool.transfer.http.urllib3_adapter import pool_classes
from tests.fakes import Clock

HOST = "h.test"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(connection, "time", made)
    monkeypatch.setattr(urllib3_adapter, "time", made)
    return made


def ignore(_sock: socket.socket) -> None:
    """Watch nothing."""


def resolved(monkeypatch: pytest.MonkeyPatch, *results: Any) -> list[str]:
    """Let names have these addresses, or fail with the one error among them; return the names that are looked up."""
    asked: list[str] = []

    def getaddrinfo(host: str, _port: int, **_: Any) -> list[Any]:
        asked.append(host)
        if results and isinstance(results[0], Exception):
            raise results[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in results]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.fixture
def listener() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


# --- addresses ---


def test_the_first_address_that_answers_is_used(
    listener: tuple[str, int], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved(monkeypatch, ("127.0.0.1", closed_port), listener, ("127.0.0.1", closed_port))
    watched: list[socket.socket] = []
    with connect(HOST, 80, 20.0, ANY_NETWORK, watched.append) as sock:
        assert sock.getpeername() == listener
        assert sock.gettimeout() is not None
        assert watched[1:] == [sock]
    assert watched[0].fileno() == -1  # what was in vain is closed


def test_the_failure_of_the_last_address_is_reported(
    listener: tuple[str, int], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolved(monkeypatch, ("127.0.0.2", closed_port), ("127.0.0.1", closed_port))
    with pytest.raises(errors.Unreachable, match=f"127.0.0.1 port {closed_port} cannot be reached") as raised:
        connect(HOST, 80, None, ANY_NETWORK, ignore)
    assert (raised.value.is_away, raised.value.is_own_network) == (True, False)
    resolved(monkeypatch)
    with pytest.raises(errors.Unreachable, match=r"h\.test has no usable address"):
        connect(HOST, 80, None, ANY_NETWORK, ignore)


@pytest.mark.parametrize(
    ("timeout_s", "each_s", "limits"),
    [
        (8.0, 0.0, [4.0, 4.0, 8.0]),
        (8.0, 2.0, [4.0, 3.0, 4.0]),
        (8.0, 60.0, [4.0, 0.001, 0.001]),
        (None, 60.0, [None, None, None]),
    ],
)
def test_each_address_leaves_half_of_the_time_to_those_behind_it(
    timeout_s: float | None, each_s: float, limits: list[float | None], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float | None] = []

    def connect_one(_family: int, _address: object, limit: float | None, _watch: object) -> socket.socket:
        tried.append(limit)
        clock.now += each_s
        raise errors.TimedOut("too long")

    monkeypatch.setattr(connection, "_connect_one", connect_one)
    resolved(monkeypatch, *[("127.0.0.1", port) for port in (1, 2, 3)])
    with pytest.raises(errors.TimedOut):
        connect(HOST, 80, timeout_s, ANY_NETWORK, ignore)
    assert tried == limits


def test_no_address_is_tried_that_the_policy_forbids(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved(monkeypatch, ("127.0.0.1", 80))
    watched: list[socket.socket] = []
    with pytest.raises(errors.PolicyRefused):
        connect(HOST, 80, None, NetworkPolicy("public-only"), watched.append)
    assert watched == []


@pytest.mark.parametrize(
    ("host", "asked"),
    [(HOST, HOST), ("[::1]", "::1"), ("[fe80::1%25eth0]", "fe80::1%eth0"), ("127.0.0.1", "127.0.0.1")],
)
def test_an_address_in_brackets_is_looked_up_without_them(
    host: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = resolved(monkeypatch, socket.gaierror(socket.EAI_NONAME, "unknown"))
    with pytest.raises(errors.NameNotResolved):
        connect(host, 80, None, ANY_NETWORK, ignore)
    assert names == [asked]


# --- what failures are called ---


@pytest.mark.parametrize(
    ("error", "has_room", "kind", "is_own", "is_away"),
    [
        (socket.gaierror(socket.EAI_NONAME, "unknown"), True, errors.NameNotResolved, False, True),
        (socket.gaierror(socket.EAI_AGAIN, "later"), True, errors.NameNotResolved, True, True),
        (socket.gaierror(socket.EAI_AGAIN, "later"), False, errors.OutOfDescriptors, False, False),
        (OSError(errno.EMFILE, "too many"), True, errors.OutOfDescriptors, False, False),
        (OSError(errno.ENETUNREACH, "no network"), True, errors.Unreachable, True, True),
        (UnicodeError("label too long"), True, errors.NameNotResolved, False, False),
    ],
)
def test_why_a_name_has_no_address(
    error: Exception,
    has_room: bool,
    kind: type[errors.RetryRange],
    is_own: bool,
    is_away: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolved(monkeypatch, error)
    monkeypatch.setattr(connection, "has_free_descriptors", lambda number: has_room or number > 1)
    with pytest.raises(errors.RetryRange) as raised:
        connect(HOST, 80, None, ANY_NETWORK, ignore)
    found = raised.value
    assert (type(found), found.is_own_network, found.is_away) == (kind, is_own, is_away)
    assert found.__cause__ is error
    assert HOST in str(found)


class Failing:
    """A socket whose connect raises ``error``, and whose close does, too."""

    error: BaseException
    closed = 0

    def __init__(self, *_: Any) -> None:
        pass

    def settimeout(self, _seconds: float | None) -> None:
        pass

    def connect(self, _address: object) -> None:
        raise self.error

    def close(self) -> None:
        Failing.closed += 1
        raise OSError(errno.EIO, "close")


@pytest.mark.parametrize(
    ("error", "kind", "is_own", "is_away"),
    [
        (TimeoutError("timed out"), errors.TimedOut, False, True),
        (OSError(errno.ECONNREFUSED, "refused"), errors.Unreachable, False, True),
        (OSError(errno.ECONNRESET, "reset"), errors.ConnectionBroken, False, False),
        (OSError(errno.EHOSTUNREACH, "no route"), errors.Unreachable, True, True),
        (OSError(errno.ENETDOWN, "down"), errors.Unreachable, True, True),
        (OSError(errno.EMFILE, "too many"), errors.OutOfDescriptors, False, False),
        (OSError("without a number"), errors.Unreachable, False, True),
    ],
)
def test_why_an_address_cannot_be_reached(
    error: OSError, kind: type[errors.RetryRange], is_own: bool, is_away: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(Failing, "closed", 0)
    monkeypatch.setattr(socket, "socket", Failing)
    with pytest.raises(errors.RetryRange) as raised:
        connection._connect_one(socket.AF_INET, ("192.0.2.1", 81), 1.0, ignore)
    found = raised.value
    assert (type(found), found.is_own_network, found.is_away) == (kind, is_own, is_away)
    assert (found.__cause__, Failing.closed) == (error, 1)
    assert "192.0.2.1 port 81" in str(found)
    if kind is errors.Unreachable:
        assert str(found).endswith(f"({error.strerror or error})")


@pytest.mark.parametrize("error", [errors.Cancelled("stopped"), KeyboardInterrupt()])
def test_who_stops_a_connection_that_is_being_made_is_heard(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "error", error, raising=False)
    monkeypatch.setattr(socket, "socket", Failing)
    with pytest.raises(type(error)) as raised:
        connection._connect_one(socket.AF_INET, ("192.0.2.1", 81), 1.0, ignore)
    assert raised.value is error


def test_headers_keep_their_target_when_they_are_copied() -> None:
    headers = TargetedHeaders("/%2f?a", {"A": "b"})
    copied = headers.copy()
    assert (copied, copied.target, copied is headers) == ({"A": "b"}, "/%2f?a", False)


# --- idle connections of a pool ---

IDLE_S = 30.0
MakePool = Callable[[], Any]


class Closer(IdleCloser):
    """Notes which pools are to be watched, and watches none."""

    def __init__(self) -> None:
        super().__init__(IDLE_S)
        self.watched: list[object] = []

    def watch(self, pool: Any) -> None:
        self.watched.append(pool)


@pytest.fixture
def closer() -> Closer:
    return Closer()


@pytest.fixture
def pool(closer: Closer, clock: Clock) -> Any:
    return pool_classes(ANY_NETWORK, closer)["http"](HOST, 80, maxsize=4)


class Sock:
    """A connected socket that has nothing to read, as far as a connection is concerned."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture(autouse=True)
def alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection has been dropped by its server."""
    monkeypatch.setattr("urllib3.connectionpool.is_connection_dropped", lambda _connection: False)


def connected(pool: Any) -> Any:
    made = pool._get_conn()
    made.sock = Sock()
    return made


def test_a_returned_connection_is_idle_and_watched(pool: Any, closer: Closer, clock: Clock) -> None:
    one = connected(pool)
    assert one.idle_since == 0.0
    pool._put_conn(one)
    assert (one.idle_since, closer.watched, one.sock is None) == (100.0, [pool], False)
    pool._put_conn(None)
    assert closer.watched == [pool]


def test_a_connection_whose_request_was_cut_is_not_used_again(pool: Any) -> None:
    one = connected(pool)
    one.is_incomplete = True
    pool._put_conn(one)
    assert (one.sock, one.is_incomplete) == (None, False)


@pytest.mark.parametrize(("idle_s", "is_closed"), [(0.0, False), (IDLE_S, False), (IDLE_S + 0.5, True)])
def test_a_connection_that_was_idle_for_too_long_is_not_used(
    idle_s: float, is_closed: bool, pool: Any, clock: Clock
) -> None:
    one = connected(pool)
    pool._put_conn(one)
    clock.now += idle_s
    assert pool._get_conn() is one
    assert (one.sock is None) is is_closed
    assert (one.idle_since == 0.0) is is_closed


@pytest.mark.parametrize("is_first", [True, False])
def test_those_that_are_idle_for_too_long_are_closed_and_the_next_is_told(
    is_first: bool, pool: Any, clock: Clock
) -> None:
    assert pool.close_idle(IDLE_S) is None
    old, young = connected(pool), connected(pool)
    for one in (old, young) if is_first else (young, old):
        pool._put_conn(one)
    young.idle_since = 110.0
    clock.now = 120.0
    assert pool.close_idle(IDLE_S) == 10.0
    assert [one.sock is None for one in (old, young)] == [False, False]
    clock.now += 10.0
    assert pool.close_idle(IDLE_S) == 10.0
    assert [one.sock is None for one in (old, young)] == [True, False]
    assert old not in pool.pool.queue
    clock.now += 10.0
    assert pool.close_idle(IDLE_S) is None
    assert young.sock is None
    assert pool.pool.queue == [None] * 4
    pool.close()
    assert pool.close_idle(IDLE_S) is None
