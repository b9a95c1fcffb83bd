"""Sending a request and its body over one connection: when it is ended, what is counted, and what is left behind."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool import errors
from dlpool.transfer.http import cancellable
from dlpool.transfer.http.cancellable import TargetedHeaders
from dlpool.transfer.http.exchange import Exchange, ExchangeStats, OutgoingBody
from dlpool.transfer.http.idle_connections import IdleCloser
from dlpool.transfer.http.policy import ANY_NETWORK, NetworkPolicy
from dlpool.transfer.http.urllib3_adapter import pool_classes
from tests.fakes import Clock

TIMEOUT_S = 30.0  # of the connection
BODY_S = 20.0  # of a body
PUBLIC = NetworkPolicy("public-only")
FINAL = b"HTTP/1.1 413 Too large\r\n\r\n"
INTERIM = b"HTTP/1.1 103 Early\r\n\r\n"


@pytest.fixture
def exchange(clock: Clock) -> Exchange:
    return Exchange(clock, lambda _seconds: None, ExchangeStats(5, 1.0))


def unconnected(port: int = 80) -> Any:
    closer = IdleCloser(TIMEOUT_S)
    pool = pool_classes(ANY_NETWORK, closer)["http"]("127.0.0.1", port, timeout=TIMEOUT_S)
    made: Any = pool._get_conn()
    made.timeout = TIMEOUT_S
    return made


@pytest.fixture
def one(pair: tuple[socket.socket, socket.socket]) -> Any:
    """A connection to ``theirs``."""
    made = unconnected()
    made.sock = pair[0]
    return made


@pytest.fixture
def theirs(pair: tuple[socket.socket, socket.socket]) -> socket.socket:
    return pair[1]


def fill(sock: socket.socket) -> None:
    """Send until nothing more can be sent."""
    sock.setblocking(False)
    try:
        while True:
            sock.send(bytes(65536))
    except BlockingIOError:
        sock.settimeout(TIMEOUT_S)


def put(one: Any, *blocks: bytes, **fields: str) -> None:
    body = OutgoingBody(blocks, sum(map(len, blocks)), BODY_S)
    one.request("PUT", "/other", headers=TargetedHeaders("/%2f?x", fields), body=body)


# --- the request ---


def test_a_request_has_the_target_and_the_fields_that_it_is_given(one: Any, theirs: socket.socket) -> None:
    one.request("GET", "/other", headers=TargetedHeaders("/%2f?x", {"A": "b"}))
    assert theirs.recv(1000) == b"GET /%2f?x HTTP/1.1\r\nHost: 127.0.0.1\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("name", ["Host", "HOST", "host"])
def test_a_host_that_is_given_is_the_only_one(name: str, one: Any, theirs: socket.socket) -> None:
    one.request("GET", "/other", headers=TargetedHeaders("/", {"A": "b", name: "h.test"}))
    assert theirs.recv(1000) == f"GET / HTTP/1.1\r\nA: b\r\n{name}: h.test\r\n\r\n".encode()


def test_a_body_follows_its_length(one: Any, theirs: socket.socket) -> None:
    put(one, b"abc", b"", b"de")
    head, _, body = theirs.recv(1000).partition(b"\r\n\r\n")
    assert (head.splitlines()[-1], body) == (b"Content-Length: 5", b"abcde")
    assert one.is_incomplete is False


@pytest.mark.parametrize(("idle_since", "is_reused"), [(0.0, False), (0.5, True), (100.0, True)])
def test_a_connection_that_was_idle_is_reused(idle_since: float, is_reused: bool, one: Any, exchange: Exchange) -> None:
    one.idle_since = idle_since
    with exchange:
        one.request("GET", "/", headers=TargetedHeaders("/", {}))
    assert exchange.is_reused is is_reused


def test_each_request_and_each_answer_has_the_time_limit_of_the_connection(
    one: Any, theirs: socket.socket, pair: tuple[socket.socket, socket.socket]
) -> None:
    pair[0].settimeout(1.0)
    one.request("GET", "/", headers=TargetedHeaders("/", {}))
    assert pair[0].gettimeout() == TIMEOUT_S
    theirs.send(b"HTTP/1.1 204 No\r\n\r\n")
    pair[0].settimeout(1.0)
    assert one.getresponse().status == 204
    assert pair[0].gettimeout() == TIMEOUT_S
    put(one, b"x")
    assert pair[0].gettimeout() == BODY_S


# --- the body ---


@pytest.mark.parametrize("is_inside", [True, False])
def test_the_server_answers_to_a_body_from_its_end_on(
    is_inside: bool, one: Any, clock: Clock, exchange: Exchange
) -> None:
    seen: list[tuple[float | None, bool]] = []

    def blocks() -> Iterator[bytes]:
        for block in (b"abc", b"defg"):
            seen.append((exchange.sent_at, one.is_incomplete))
            clock.now += 10.0
            yield block

    exchange.sent_at = 1.0
    body = OutgoingBody(blocks(), 7, BODY_S)
    if is_inside:
        with exchange:
            one._send_body(body)
        assert (seen, exchange.sent_at) == ([(None, True)] * 2, 120.0)
        assert exchange.stats() == ExchangeStats(12, 1.0)
    else:
        one._send_body(body)
        assert (seen, exchange.sent_at) == ([(1.0, True)] * 2, 1.0)
    assert one.is_incomplete is False


def test_only_what_a_socket_takes_is_counted_and_the_rest_follows(one: Any, clock: Clock, exchange: Exchange) -> None:
    sent: list[bytes] = []

    def send(view: memoryview) -> int:
        clock.now += 2.0
        sent.append(bytes(view))
        return min(3, len(view))

    one.sock = SimpleNamespace(send=send, settimeout=lambda _seconds: None)
    one._may_send = lambda _timeout_s: True
    assert one._send_block(memoryview(b"abcdefgh"), BODY_S, exchange) is True
    assert sent == [b"abcdefgh", b"defgh", b"gh"]
    assert exchange.stats() == ExchangeStats(13, 7.0)
    assert one._send_block(memoryview(b""), BODY_S, None) is True


@pytest.mark.parametrize("is_inside", [True, False])
def test_an_answer_before_its_end_ends_a_body(
    is_inside: bool, one: Any, theirs: socket.socket, exchange: Exchange
) -> None:
    taken: list[int] = []

    def blocks() -> Iterator[bytes]:
        for number in range(4):
            taken.append(number)
            if number == 1:
                theirs.send(FINAL)
            yield b"abc"

    if is_inside:
        with exchange:
            one._send_body(OutgoingBody(blocks(), 12, BODY_S))
        assert exchange.stats().received == 5 + 3
        assert exchange.waiting_since is None
    else:
        one._send_body(OutgoingBody(blocks(), 12, BODY_S))
    assert (taken, one.is_incomplete, theirs.recv(100)) == ([0, 1], True, b"abc")


def test_a_body_that_fails_leaves_its_request_cut(one: Any) -> None:
    def blocks() -> Iterator[bytes]:
        yield b"abc"
        raise errors.Cancelled("cancelled")

    with pytest.raises(errors.Cancelled):
        one._send_body(OutgoingBody(blocks(), 12, BODY_S))
    assert one.is_incomplete is True


# --- whether more can be sent ---


@pytest.mark.parametrize(
    ("said", "may_send", "listens"),
    [
        (b"", True, True),
        (b"H", True, True),
        (b"HTTP/1.1 ", True, True),
        (b"HTTP/1.1 4", False, True),
        (FINAL, False, True),
        (b"HTTP/1.0 200 Fine\r\n\r\n", False, True),
        (INTERIM, True, False),
        (b"HTTP/1.1 1", True, False),
        (b"x" * 30, False, True),
    ],
)
def test_what_a_server_says_before_the_end_of_a_body_is_looked_at_and_not_taken(
    said: bytes, may_send: bool, listens: bool, one: Any, theirs: socket.socket
) -> None:
    if said:
        theirs.send(said)
    assert one._may_send(BODY_S) is may_send
    assert one._detects_response is listens
    if said:
        assert one.sock.recv(100) == said


@pytest.mark.parametrize("said", [INTERIM, FINAL])
def test_a_connection_that_does_not_listen_sends_while_it_can(said: bytes, one: Any, theirs: socket.socket) -> None:
    one._detects_response = False
    theirs.send(said)
    assert one._may_send(BODY_S) is True
    fill(one.sock)
    assert one._may_send(0.01) is False


@pytest.mark.parametrize(("said", "may_send"), [(FINAL, False), (b"HTTP", False), (INTERIM, False)])
def test_a_server_that_takes_no_more_and_speaks_has_answered(
    said: bytes, may_send: bool, one: Any, theirs: socket.socket
) -> None:
    fill(one.sock)
    theirs.send(said)
    assert one._may_send(0.01) is may_send


def test_a_server_that_takes_no_more_and_is_silent_is_waited_for_in_vain(one: Any) -> None:
    fill(one.sock)
    with pytest.raises(TimeoutError, match="the server accepts no more of the body"):
        one._may_send(0.01)


@pytest.mark.parametrize("listens", [True, False])
def test_nothing_is_sent_to_a_server_that_has_hung_up(listens: bool, one: Any, theirs: socket.socket) -> None:
    one._detects_response = listens
    theirs.close()
    assert one._may_send(BODY_S) is False


@pytest.mark.parametrize("is_tls", [True, False])
def test_over_tls_nothing_is_taken_for_an_answer_while_more_can_be_sent(
    is_tls: bool, one: Any, theirs: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = socket.socket if is_tls else ssl.SSLSocket
    monkeypatch.setattr(cancellable, "ssl", SimpleNamespace(SSLSocket=kind))
    one._detects_response = is_tls
    theirs.send(FINAL)
    one._send_body(OutgoingBody([b"abc"], 3, BODY_S))
    assert one.is_incomplete is not is_tls
    assert one._detects_response is not is_tls


@pytest.mark.parametrize(
    ("found", "expected"), [([], 0), ([(7, select.POLLIN | select.POLLHUP)], select.POLLIN | select.POLLHUP)]
)
def test_a_socket_is_polled_for_what_is_asked_and_in_milliseconds(
    found: list[tuple[int, int]], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    class Poll:
        def register(self, *given: object) -> None:
            calls.append(given)

        def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
            calls.append(timeout_ms)
            return found

    monkeypatch.setattr(cancellable, "select", SimpleNamespace(poll=Poll))
    sock: Any = object()
    assert cancellable.poll_events(sock, select.POLLIN, 0.25) == expected
    assert calls == [(sock, select.POLLIN), 250.0]


def test_what_cannot_be_looked_at_says_nothing(one: Any, theirs: socket.socket) -> None:
    theirs.send(b"HTTP/1.1 200 OK")
    assert cancellable._peek(one.sock) == b"HTTP/1.1 2"
    one.sock.close()
    assert cancellable._peek(one.sock) == b""


# --- the socket of a connection ---


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_connection_is_ended_by_the_exchange_that_makes_it(port: int, exchange: Exchange) -> None:
    one = unconnected(port)
    with exchange:
        one.connect()
        assert one.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
        assert (exchange._shutdown, one._shutdown._holders) == (one._shutdown, 2)
        exchange.cancel(errors.Cancelled("cancelled"))
        assert one.sock.recv(1) == b""
        exchange.detach()
    breaker = one._shutdown
    one.idle_since, one.is_incomplete = 5.0, True
    one.close()
    assert (one._shutdown, breaker._holders, breaker._socket) == (None, 0, None)
    assert (one.sock, one.idle_since, one.is_incomplete) == (None, 0.0, False)
    one.close()


def test_a_connection_is_ended_by_the_exchange_that_uses_it_later(port: int, exchange: Exchange) -> None:
    one = unconnected(port)
    one.connect()
    with exchange:
        one.request("GET", "/", headers=TargetedHeaders("/", {}))
        assert exchange._shutdown is one._shutdown
        exchange.detach()
    one.close()


def test_each_address_that_is_tried_has_its_own_breaker(pair: tuple[socket.socket, socket.socket]) -> None:
    one = unconnected()
    one.socket_options = None
    one._register_socket(pair[0])
    first = one._shutdown
    one._register_socket(pair[1])
    assert (first._socket, one._shutdown is first) == (None, False)
    one.close()


@pytest.mark.parametrize(
    ("timeout", "limit"), [(3.0, 3.0), (4, 4), (None, None), (object(), None)], ids=["float", "int", "none", "other"]
)
@pytest.mark.parametrize(("proxy", "policy"), [(None, PUBLIC), ("http://proxy.test", ANY_NETWORK)])
def test_a_proxy_is_reached_whatever_the_policy_for_origins(
    timeout: Any, limit: float | None, proxy: str | None, policy: NetworkPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = unconnected(81)
    one.proxy, one.timeout, one.network_policy = proxy, timeout, PUBLIC
    calls: list[tuple[Any, ...]] = []
    made: Callable[..., None] = lambda *given: calls.append(given)  # noqa: E731
    monkeypatch.setattr(cancellable, "connect", made)
    one._new_conn()
    assert calls == [("127.0.0.1", 81, limit, policy, one._register_socket)]
