"""A Redis that does not answer: who tries, and who is told at once."""

from __future__ import annotations

import threading

import pytest

from dlpool.errors import NoSuchJob, QueueAway, UsageError
from dlpool.web.circuit_breaker import PROBE_S, SLOW_S, CircuitBreaker
from tests.fakes import Clock


@pytest.fixture
def outage(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def fail(outage: CircuitBreaker, clock: Clock, took_s: float) -> None:
    with pytest.raises(QueueAway, match="no answer"), outage.guard():
        clock.now += took_s
        raise QueueAway("no answer")


def is_asked(outage: CircuitBreaker, error: Exception | None = None) -> bool:
    asked = False
    try:
        with outage.guard():
            asked = True
            if error is not None:
                raise error
    except (QueueAway, NoSuchJob, UsageError):
        pass
    return asked


def test_after_one_has_waited_the_others_are_told_at_once(outage: CircuitBreaker, clock: Clock) -> None:
    fail(outage, clock, SLOW_S)
    assert not is_asked(outage)
    clock.now += PROBE_S
    assert is_asked(outage)
    assert is_asked(outage)


def test_who_is_refused_at_once_keeps_nobody_from_asking(outage: CircuitBreaker, clock: Clock) -> None:
    fail(outage, clock, 0.1)
    assert is_asked(outage)


def test_one_tries_at_a_time(outage: CircuitBreaker, clock: Clock) -> None:
    fail(outage, clock, SLOW_S)
    clock.now += PROBE_S
    entered, leave = threading.Event(), threading.Event()

    def try_it() -> None:
        with outage.guard():
            entered.set()
            leave.wait(10)

    trying = threading.Thread(target=try_it)
    trying.start()
    assert entered.wait(10)
    assert not is_asked(outage)
    leave.set()
    trying.join(10)
    assert is_asked(outage)


def test_a_try_that_waits_in_vain_is_followed_by_another(outage: CircuitBreaker, clock: Clock) -> None:
    for _ in range(3):
        fail(outage, clock, SLOW_S)
        assert not is_asked(outage)
        clock.now += PROBE_S
    assert is_asked(outage)


def test_an_error_of_who_asks_says_nothing_of_redis_and_an_unknown_job_does(
    outage: CircuitBreaker, clock: Clock
) -> None:
    fail(outage, clock, SLOW_S)
    clock.now += PROBE_S
    assert is_asked(outage, UsageError("bad"))
    assert not is_asked(outage)
    clock.now += PROBE_S
    assert is_asked(outage, NoSuchJob("gone"))
    assert is_asked(outage)
