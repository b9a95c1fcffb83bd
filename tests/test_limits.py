"""Limits that threads share, on a clock of our own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.transfer.http.limits import (
    BURST_S,
    LEAST_READ,
    NETWORK_MEMORY_S,
    HostHolds,
    NetworkMonitor,
    RateLimit,
    RateLimits,
)
from tests.fakes import Clock

# --- bytes a second ---


def test_without_a_rate_nothing_waits(clock: Clock) -> None:
    assert RateLimit(None, clock).spend(10**12) == 0.0


def test_bytes_are_waited_for_at_the_rate(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    assert limit.spend(500) == 0.5
    assert limit.spend(500) == 1.0


def test_time_that_passes_pays_for_bytes(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    limit.spend(1000)
    clock.now += 0.75
    assert limit.spend(0) == pytest.approx(0.25)


def test_an_idle_bucket_holds_no_more_than_a_burst(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    clock.now += 3600
    burst = int(1000 * BURST_S)
    assert limit.spend(burst) == 0.0
    assert limit.spend(1) == pytest.approx(0.001)


def test_a_new_limit_has_no_burst(clock: Clock) -> None:
    assert RateLimit(1000, clock).spend(1) == pytest.approx(0.001)


def test_the_rate_may_change_under_way(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    limit.spend(1000)
    limit.rate = 2000
    assert limit.spend(0) == pytest.approx(0.5)


def test_a_lower_rate_makes_nobody_wait_longer_for_what_was_read_before(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    limit.spend(1000)
    limit.rate = 10
    assert limit.spend(0) == pytest.approx(1.0)
    assert limit.spend(10) == pytest.approx(2.0)


def test_a_rate_that_comes_and_goes_leaves_no_debt_and_no_credit(clock: Clock) -> None:
    limit = RateLimit(1000, clock)
    limit.spend(10**6)
    limit.rate = None
    assert limit.spend(10**6) == 0.0
    clock.now += 3600
    limit.rate = 1000
    assert limit.spend(1000) == pytest.approx(1.0)


def test_of_two_limits_the_tighter_one_is_waited_for(clock: Clock) -> None:
    own, shared = RateLimit(100_000, clock), RateLimit(50_000, clock)
    both = RateLimits(own, shared)
    assert both.spend(100_000) == pytest.approx(2.0)
    assert RateLimits(shared).spend(0) == pytest.approx(2.0)  # others see what was taken
    assert both.max_read(10**6) == 5_000
    shared.rate = None
    assert both.max_read(10**6) == 10_000
    own.rate = None
    assert both.max_read(10**6) == 10**6
    own.rate = 1
    assert both.max_read(10**6) == LEAST_READ


@given(
    st.integers(1024, 10**9),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 128 * 1024), st.floats(0, 0.5)), min_size=1, max_size=60),
)
@settings(deadline=None)
def test_threads_together_stay_within_rate_and_burst(rate: int, reads: list[tuple[int, int, float]]) -> None:
    """Each thread waits as told, and sometimes is late; each read counts when its wait is over."""
    clock = Clock(1000.0)
    limit = RateLimit(rate, clock)
    free_at = [clock.now] * 4
    ends: list[tuple[float, int]] = []
    for thread, size, late_s in reads:
        clock.now = max(clock.now, free_at[thread]) + late_s
        free_at[thread] = clock.now + limit.spend(size)
        ends.append((free_at[thread], size))
    passed = sum(size for _, size in ends)
    elapsed = max(end for end, _ in ends) - 1000.0
    assert passed <= rate * (elapsed + BURST_S) * 1.000001 + 1


# --- a host's Retry-After ---


def test_a_host_that_said_nothing_may_be_asked_now(clock: Clock) -> None:
    assert HostHolds(clock).wait_s("host") == 0.0


def test_a_held_host_is_asked_when_its_time_is_over(clock: Clock) -> None:
    gate = HostHolds(clock)
    gate.hold("host", 10)
    assert gate.wait_s("host") == 10
    clock.now += 4
    assert gate.wait_s("host") == 6
    clock.now += 7
    assert gate.wait_s("host") == 0


def test_a_hold_is_for_one_host(clock: Clock) -> None:
    gate = HostHolds(clock)
    gate.hold("host", 10)
    assert gate.wait_s("other") == 0


@pytest.mark.parametrize(("first", "second"), [(10, 3), (3, 10), (10, 0)])
def test_the_longer_hold_stands(clock: Clock, first: float, second: float) -> None:
    gate = HostHolds(clock)
    gate.hold("host", first)
    gate.hold("host", second)
    assert gate.wait_s("host") == 10


def test_a_hold_of_another_host_does_not_shorten_one(clock: Clock) -> None:
    gate = HostHolds(clock)
    gate.hold("host", 10)
    clock.now += 5
    gate.hold("other", 1)
    assert gate.wait_s("host") == 5


def test_other_processes_hear_what_a_server_said_and_not_what_they_told(clock: Clock) -> None:
    told: list[tuple[str, float]] = []
    gate = HostHolds(clock, lambda host, seconds: told.append((host, seconds)))
    gate.record("host", 10)
    assert (gate.wait_s("host"), told) == (10, [])
    gate.hold("host", 3)
    assert (gate.wait_s("host"), told) == (10, [("host", 3)])


def test_holds_that_are_over_are_forgotten(clock: Clock) -> None:
    gate = HostHolds(clock)
    gate.hold("a", 1)
    gate.hold("b", 10)
    clock.now += 2
    gate.hold("c", 1)
    assert sorted(gate._holds) == ["b", "c"]


# --- our own network ---


def test_one_unknown_host_says_nothing_about_our_network(clock: Clock) -> None:
    watch = NetworkMonitor(clock)
    watch.failed("a")
    assert not watch.is_away("a")


def test_two_hosts_at_once_mean_that_our_network_is_away(clock: Clock) -> None:
    watch = NetworkMonitor(clock)
    watch.failed("a")
    watch.failed("b")
    assert watch.is_away("a")
    assert watch.is_away("b")


def test_a_host_that_had_answered_means_it_alone(clock: Clock) -> None:
    watch = NetworkMonitor(clock)
    watch.answered("a")
    watch.failed("a")
    assert watch.is_away("a")


def test_a_host_that_did_not_fail_is_not_away(clock: Clock) -> None:
    watch = NetworkMonitor(clock)
    watch.failed("a")
    watch.failed("b")
    assert not watch.is_away("c")


@pytest.mark.parametrize("answering", ["a", "b", "c"])
def test_any_answer_shows_that_our_network_is_there(clock: Clock, answering: str) -> None:
    watch = NetworkMonitor(clock)
    watch.answered("c")
    watch.failed("a")
    watch.failed("b")
    watch.answered(answering)
    assert not watch.is_away("a")
    watch.failed("b")
    assert not watch.is_away("a")


def test_failures_long_ago_are_forgotten(clock: Clock) -> None:
    watch = NetworkMonitor(clock)
    watch.failed("a")
    clock.now += NETWORK_MEMORY_S
    watch.failed("b")
    assert not watch.is_away("a")
    assert not watch.is_away("b")
