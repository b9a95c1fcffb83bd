"""Which connections are ended because they bring too little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.errors import RetryRange, TimedOut, TooSlow
from dlpool.transfer.exchange import Figures
from dlpool.transfer.watch import (
    ANSWER_FACTOR,
    LEAST_GAIN_S,
    LEAST_SPAN_S,
    LEAST_WAIT_S,
    MAX_PATIENCE_S,
    RATE_WINDOW_S,
    SLOWER,
    Gauge,
    below_minimum,
    far_behind,
    outwaited,
    overdue,
    patience_s,
)

MIB = 1024 * 1024


def gauge(*samples: tuple[int, float]) -> Gauge:
    """A gauge that has seen these (bytes, seconds)."""
    made = Gauge()
    for received, waited_s in samples:
        made.add(Figures(received, waited_s))
    return made


def steady(rate: float, seconds: float) -> Gauge:
    """A gauge of a connection that brought ``rate`` for so long, looked at four times a second."""
    return gauge(*[(int(rate * step / 4), step / 4) for step in range(int(seconds * 4) + 1)])


# --- the gauge ---


def test_a_gauge_without_samples_knows_nothing() -> None:
    assert (Gauge().rate, Gauge().waited_s) == (0.0, 0.0)


def test_a_single_sample_is_no_speed() -> None:
    assert gauge((1000, 5.0)).rate == 0.0


def test_a_speed_over_too_short_a_wait_is_not_told() -> None:
    assert gauge((0, 0.0), (10**9, LEAST_SPAN_S)).rate == 0.0


def test_a_speed_is_bytes_by_waiting() -> None:
    assert gauge((100, 1.0), (1100, 1.5)).rate == pytest.approx(2000.0)


def test_what_lies_before_the_window_is_forgotten() -> None:
    fast_then_slow = gauge(*[(10**9 + step * 100, 10.0 + step) for step in range(5)], (10**9 + 500, 15.0))
    assert gauge((0, 0.0), *fast_then_slow.samples).rate == pytest.approx(100.0)


def test_a_burst_is_spread_over_the_window() -> None:
    burst = gauge((0, 0.0), (1000, 0.5), (1000, 1.0), (1000, 1.5))
    assert burst.rate == pytest.approx(1000 / 1.5)


def test_the_wait_is_counted_from_the_first_sample() -> None:
    assert steady(1000.0, 10.0).waited_s == 10.0
    assert gauge((0, 5.0), (10, 7.0)).waited_s == 2.0


@given(st.lists(st.tuples(st.integers(0, MIB), st.floats(0, 3)), min_size=1, max_size=30))
def test_a_gauge_is_short_and_never_negative(steps: list[tuple[int, float]]) -> None:
    made, received, waited_s = Gauge(), 0, 0.0
    for size, seconds in steps:
        received, waited_s = received + size, waited_s + seconds
        made.add(Figures(received, waited_s))
        assert made.rate >= 0.0
        assert made.waited_s >= 0.0
        assert len(made.samples) <= 2 or waited_s - made.samples[1].waited_s < RATE_WINDOW_S
        assert made.samples[-1] == Figures(received, waited_s)


# --- the minimum speed ---


@pytest.mark.parametrize(
    ("received", "waited_s", "is_ended"),
    [
        (0, 29.9, False),
        (0, 30.0, True),
        (29_999, 30.0, True),
        (30_000, 30.0, False),
        (30_000, 30.1, True),
        (10**9, 3600.0, False),
    ],
)
def test_a_connection_below_the_minimum_for_the_whole_time_is_ended(
    received: int, waited_s: float, is_ended: bool
) -> None:
    error = below_minimum(gauge((0, 0.0), (received, waited_s)), 1000, 30.0)
    assert (type(error) if error else None) is (TooSlow if is_ended else None)


def test_the_least_minimum_is_a_byte_a_second() -> None:
    assert isinstance(below_minimum(gauge((0, 0.0), (29, 30.0)), 1, 30.0), TooSlow)


def test_without_a_minimum_nothing_is_too_slow() -> None:
    assert below_minimum(gauge((0, 0.0), (0, 10_000.0)), 0, 30.0) is None


def test_each_span_of_time_is_judged_by_itself() -> None:
    """A fast beginning does not excuse a stall."""
    made = gauge((0, 0.0), (10**9, 30.0))
    assert below_minimum(made, 1000, 30.0) is None
    made.add(Figures(10**9, 59.0))
    assert below_minimum(made, 1000, 30.0) is None
    made.add(Figures(10**9, 60.0))
    assert isinstance(below_minimum(made, 1000, 30.0), TooSlow)


# --- siblings ---


def test_a_connection_far_behind_its_fastest_sibling_is_ended() -> None:
    siblings = [steady(10_000.0, 5.0), steady(1e6, 5.0)]
    error = far_behind(steady(1e6 / SLOWER - 1000, 5.0), siblings, MIB, LEAST_WAIT_S)
    assert isinstance(error, TooSlow)


@pytest.mark.parametrize(
    ("own", "siblings", "remaining"),
    [
        pytest.param(steady(1e6 / SLOWER, 5.0), [steady(1e6, 5.0)], MIB, id="not so far behind"),
        pytest.param(steady(1e6, 5.0), [steady(1e6, 5.0)], 100 * MIB, id="as fast"),
        pytest.param(steady(10.0, 5.0), [], MIB, id="alone"),
        pytest.param(steady(10.0, 5.0), [Gauge()], MIB, id="siblings of unknown speed"),
        pytest.param(steady(10.0, LEAST_WAIT_S - 0.25), [steady(1e6, 5.0)], MIB, id="too young"),
        pytest.param(steady(1000.0, 5.0), [steady(1e6, 5.0)], int(1000 * LEAST_GAIN_S) - 1, id="nearly done"),
    ],
)
def test_a_connection_is_left_alone(own: Gauge, siblings: list[Gauge], remaining: int) -> None:
    assert far_behind(own, siblings, remaining, LEAST_WAIT_S) is None


def test_a_connection_that_brings_nothing_is_ended_however_little_is_left() -> None:
    assert isinstance(far_behind(steady(0.0, 5.0), [steady(1e6, 5.0)], 1, LEAST_WAIT_S), TooSlow)


def test_patience_delays_the_comparison() -> None:
    slow, siblings = gauge((0, 0.0), (10, 5.0)), [steady(1e6, 5.0)]
    assert far_behind(slow, siblings, MIB, 5.0) is not None
    assert far_behind(slow, siblings, MIB, 5.1) is None


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [(0, LEAST_WAIT_S), (1, 2 * LEAST_WAIT_S), (3, 8 * LEAST_WAIT_S), (6, MAX_PATIENCE_S), (10**6, MAX_PATIENCE_S)],
)
def test_patience_grows_each_time_that_a_new_connection_was_no_better(replaced: int, expected: float) -> None:
    assert patience_s(replaced) == expected


def test_only_what_a_comparison_ended_says_so() -> None:
    compared = [far_behind(steady(10.0, 5.0), [steady(1e6, 5.0)], MIB, 1.0), outwaited(100.0, 1.0, 1.0)]
    absolute = [below_minimum(gauge((0, 0.0), (0, 30.0)), 1000, 30.0), overdue(100.0, 10.0, 30.0)]
    errors = [error for error in compared + absolute if isinstance(error, RetryRange)]
    assert [error.is_comparison for error in errors] == [True, True, False, False]


# --- answers that do not come ---


@pytest.mark.parametrize(("asked_s", "expected"), [(0.0, None), (39.9, None), (40.0, TimedOut), (1000.0, TimedOut)])
def test_an_answer_is_overdue_after_both_limits(asked_s: float, expected: type[RetryRange] | None) -> None:
    error = overdue(asked_s, connect_timeout_s=10.0, read_timeout_s=30.0)
    assert (type(error) if error else None) is expected


@pytest.mark.parametrize(
    ("asked_s", "usual_s", "expected"),
    [
        (LEAST_WAIT_S - 0.01, 0.0, None),
        (LEAST_WAIT_S, 0.0, TooSlow),
        (LEAST_WAIT_S, LEAST_WAIT_S / ANSWER_FACTOR, TooSlow),
        (3.0 * ANSWER_FACTOR - 0.01, 3.0, None),
        (3.0 * ANSWER_FACTOR, 3.0, TooSlow),
    ],
)
def test_an_answer_far_later_than_usual_is_not_waited_for(
    asked_s: float, usual_s: float, expected: type[RetryRange] | None
) -> None:
    error = outwaited(asked_s, usual_s, LEAST_WAIT_S)
    assert (type(error) if error else None) is expected


def test_patience_delays_the_end_of_a_request() -> None:
    assert outwaited(5.0, 0.0, patience=5.0) is not None
    assert outwaited(4.9, 0.0, patience=5.0) is None
