"""A request in flight: what others see of it, and how they end it. Over pairs of connected sockets."""

from __future__ import annotations

import os
import socket

import pytest

from dlpool.errors import Cancelled, TimedOut
from dlpool.transfer.http.exchange import Exchange, ExchangeStats, SocketShutdown, current_exchange
from tests.fakes import Clock


@pytest.fixture
def exchange(clock: Clock) -> Exchange:
    return Exchange(clock, lambda _seconds: None, ExchangeStats(10, 2.0))


def is_open(breaker: SocketShutdown) -> bool:
    return breaker._socket is not None


# --- the breaker ---


def test_a_breaker_ends_both_directions_and_leaves_the_socket_to_its_owner(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    breaker = SocketShutdown(ours)
    breaker.shut_down()
    assert ours.recv(1) == b""
    assert theirs.recv(1) == b""
    with pytest.raises(BrokenPipeError):
        ours.send(b"x")
    breaker.release()
    assert ours.fileno() >= 0


def test_the_last_holder_of_a_breaker_closes_its_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    breaker = SocketShutdown(ours)
    assert breaker._socket is not None
    number = breaker._socket.fileno()
    assert number != ours.fileno()
    breaker.hold()
    breaker.release()
    assert is_open(breaker)
    breaker.release()
    assert not is_open(breaker)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    breaker.shut_down()  # its number may be another file's by now
    ours.send(b"x")
    assert theirs.recv(1) == b"x"


# --- who is inside ---


def test_a_thread_is_inside_one_exchange_at_a_time(exchange: Exchange) -> None:
    assert current_exchange() is None
    with exchange as entered:
        assert entered is exchange
        assert current_exchange() is exchange
    assert current_exchange() is None
    with pytest.raises(ZeroDivisionError), exchange:
        raise ZeroDivisionError
    assert current_exchange() is None


@pytest.mark.parametrize("fails", [False, True])
def test_a_failed_request_lets_go_of_its_connection(
    fails: bool, exchange: Exchange, pair: tuple[socket.socket, socket.socket]
) -> None:
    breaker = SocketShutdown(pair[0])
    try:
        with exchange:
            exchange.attach(breaker)
            breaker.release()  # the connection closes
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert is_open(breaker) is not fails  # the body is still to be read
    exchange.detach()
    exchange.detach()
    assert not is_open(breaker)


# --- ended by others ---


def test_the_first_error_stands_and_breaks_the_connection(
    exchange: Exchange, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _theirs = pair
    exchange.check()
    breaker = SocketShutdown(ours)
    exchange.attach(breaker)
    exchange.cancel(TimedOut("first"))
    exchange.cancel(Cancelled("second"))
    assert ours.recv(1) == b""
    with pytest.raises(TimedOut, match="first"):
        exchange.check()


def test_an_exchange_that_was_ended_gets_no_connection(
    exchange: Exchange, pair: tuple[socket.socket, socket.socket]
) -> None:
    exchange.cancel(Cancelled("before"))
    with pytest.raises(Cancelled, match="before"):
        exchange.attach(SocketShutdown(pair[0]))


def test_a_late_end_does_not_reach_the_next_user_of_a_connection(
    exchange: Exchange, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    exchange.attach(SocketShutdown(ours))
    exchange.detach()
    exchange.cancel(TimedOut("late"))
    ours.send(b"x")
    assert theirs.recv(1) == b"x"


def test_another_connection_takes_the_place_of_the_first(
    exchange: Exchange, pair: tuple[socket.socket, socket.socket]
) -> None:
    first, second = SocketShutdown(pair[0]), SocketShutdown(pair[1])
    exchange.attach(first)
    first.release()
    exchange.attach(second)
    assert not is_open(first)
    second.release()
    assert is_open(second)


# --- figures ---


def test_figures_continue_those_of_before_and_include_the_present_wait(clock: Clock, exchange: Exchange) -> None:
    assert exchange.stats() == ExchangeStats(10, 2.0)
    exchange.end_wait(0)
    assert exchange.stats() == ExchangeStats(10, 2.0)
    exchange.begin_wait()
    clock.now += 3.0
    assert exchange.stats() == ExchangeStats(10, 5.0)
    exchange.end_wait(7)
    clock.now += 60.0
    assert exchange.stats() == ExchangeStats(17, 5.0)
    exchange.end_wait(1)
    assert exchange.stats() == ExchangeStats(18, 5.0)


@pytest.mark.parametrize(
    ("asked_at", "answered_at", "expected"),
    [(None, None, None), (90.0, None, None), (None, 95.0, None), (90.0, 95.5, 5.5)],
)
def test_the_time_of_an_answer_is_known_when_it_has_come(
    asked_at: float | None, answered_at: float | None, expected: float | None, exchange: Exchange
) -> None:
    assert (exchange.sent_at, exchange.answered_at, exchange.is_reused) == (None, None, False)
    exchange.sent_at, exchange.answered_at = asked_at, answered_at
    assert exchange.answer_s == expected
