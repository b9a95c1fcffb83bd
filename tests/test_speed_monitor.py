"""Which connections are ended because they bring too little."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.config import NetworkSettings
from dlpool.errors import RetryRange, TimedOut, TooSlow
from dlpool.transfer.chunks import MIN_TAIL_BYTES, Chunk
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.speed_monitor import (
    ANSWER_FACTOR,
    MAX_COMPARISON_DELAY_S,
    MIN_ANSWER_S,
    MIN_GAIN_S,
    MIN_SPAN_S,
    MIN_WAIT_S,
    OLD_S,
    RATE_WINDOW_S,
    SLOWER,
    STALLED_RATE,
    STALLED_S,
    SpeedMonitor,
    SpeedSamples,
    answer_timed_out,
    below_minimum,
    comparison_delay_s,
    delays_completion,
    header_timed_out,
    slower_than_siblings,
)

MIB = 1024 * 1024


def speed(*samples: tuple[int, float]) -> SpeedSamples:
    """A speed that has seen these (bytes, seconds)."""
    made = SpeedSamples()
    for received, waited_s in samples:
        made.add(ExchangeStats(received, waited_s))
    return made


def steady(rate: float, seconds: float) -> SpeedSamples:
    """A speed of a connection that brought ``rate`` for so long, looked at ten times a second."""
    return speed(*[(int(rate * step / 10), step / 10) for step in range(int(seconds * 10) + 1)])


# --- the speed ---


def test_a_speed_without_samples_knows_nothing() -> None:
    assert (SpeedSamples().rate, SpeedSamples().waited_s) == (0.0, 0.0)


def test_a_single_sample_is_no_speed() -> None:
    assert speed((1000, 5.0)).rate == 0.0


def test_a_speed_over_too_short_a_wait_is_not_told() -> None:
    assert speed((0, 0.0), (10**9, MIN_SPAN_S)).rate == 0.0


def test_a_speed_is_bytes_by_waiting() -> None:
    assert speed((100, 1.0), (1100, 1.5)).rate == pytest.approx(2000.0)


def test_what_lies_before_the_window_is_forgotten() -> None:
    fast_then_slow = speed(*[(10**9 + step * 100, 10.0 + step) for step in range(5)], (10**9 + 500, 15.0))
    assert speed((0, 0.0), *fast_then_slow.samples).rate == pytest.approx(100.0)


def test_a_burst_is_spread_over_the_window() -> None:
    burst = speed((0, 0.0), (1000, 0.5), (1000, 1.0), (1000, 1.5))
    assert burst.rate == pytest.approx(1000 / 1.5)


def test_the_wait_is_counted_from_the_first_sample() -> None:
    assert steady(1000.0, 10.0).waited_s == 10.0
    assert speed((0, 5.0), (10, 7.0)).waited_s == 2.0


@given(st.lists(st.tuples(st.integers(0, MIB), st.floats(0, 3)), min_size=1, max_size=30))
def test_a_speed_is_short_and_never_negative(steps: list[tuple[int, float]]) -> None:
    made, received, waited_s = SpeedSamples(), 0, 0.0
    for size, seconds in steps:
        received, waited_s = received + size, waited_s + seconds
        made.add(ExchangeStats(received, waited_s))
        assert made.rate >= 0.0
        assert made.waited_s >= 0.0
        assert len(made.samples) <= 2 or waited_s - made.samples[1].waited_s < RATE_WINDOW_S
        assert made.samples[-1] == ExchangeStats(received, waited_s)


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
    error = below_minimum(speed((0, 0.0), (received, waited_s)), 1000, 30.0)
    assert (type(error) if error else None) is (TooSlow if is_ended else None)


def test_the_least_minimum_is_a_byte_a_second() -> None:
    assert isinstance(below_minimum(speed((0, 0.0), (29, 30.0)), 1, 30.0), TooSlow)


def test_without_a_minimum_nothing_is_too_slow() -> None:
    assert below_minimum(speed((0, 0.0), (0, 10_000.0)), 0, 30.0) is None


def test_each_span_of_time_is_judged_by_itself() -> None:
    """A fast beginning does not excuse a stall."""
    made = speed((0, 0.0), (10**9, 30.0))
    assert below_minimum(made, 1000, 30.0) is None
    made.add(ExchangeStats(10**9, 59.0))
    assert below_minimum(made, 1000, 30.0) is None
    made.add(ExchangeStats(10**9, 60.0))
    assert isinstance(below_minimum(made, 1000, 30.0), TooSlow)


# --- siblings ---


def test_a_connection_far_behind_its_fastest_sibling_is_ended() -> None:
    siblings = [steady(10_000.0, 5.0), steady(1e6, 5.0)]
    error = slower_than_siblings(steady(1e6 / SLOWER - 1000, 5.0), siblings, MIB, MIN_WAIT_S)
    assert isinstance(error, TooSlow)


@pytest.mark.parametrize(
    ("own", "siblings", "remaining"),
    [
        pytest.param(steady(1e6 / SLOWER, 5.0), [steady(1e6, 5.0)], MIB, id="not so far behind"),
        pytest.param(steady(1e6, 5.0), [steady(1e6, 5.0)], 100 * MIB, id="as fast"),
        pytest.param(steady(10.0, 5.0), [], MIB, id="alone"),
        pytest.param(steady(10.0, 5.0), [SpeedSamples()], MIB, id="siblings of unknown speed"),
        pytest.param(steady(10.0, MIN_WAIT_S - 0.1), [steady(1e6, 5.0)], MIB, id="too young"),
        pytest.param(steady(1000.0, 5.0), [steady(1e6, 5.0)], int(1000 * MIN_GAIN_S) - 1, id="nearly done"),
    ],
)
def test_a_connection_is_left_alone(own: SpeedSamples, siblings: list[SpeedSamples], remaining: int) -> None:
    assert slower_than_siblings(own, siblings, remaining, MIN_WAIT_S) is None


def test_a_connection_that_brings_nothing_is_ended_however_little_is_left() -> None:
    assert isinstance(slower_than_siblings(steady(0.0, 5.0), [steady(1e6, 5.0)], 1, MIN_WAIT_S), TooSlow)


def test_patience_delays_the_comparison() -> None:
    slow, siblings = speed((0, 0.0), (10, 5.0)), [steady(1e6, 5.0)]
    assert slower_than_siblings(slow, siblings, MIB, 5.0) is not None
    assert slower_than_siblings(slow, siblings, MIB, 5.1) is None


@pytest.mark.parametrize(
    ("replaced", "expected"),
    [
        (0, MIN_WAIT_S),
        (1, 2 * MIN_WAIT_S),
        (3, 8 * MIN_WAIT_S),
        (8, MAX_COMPARISON_DELAY_S),
        (10**6, MAX_COMPARISON_DELAY_S),
    ],
)
def test_patience_grows_each_time_that_a_new_connection_was_no_better(replaced: int, expected: float) -> None:
    assert comparison_delay_s(replaced) == expected


def test_only_what_a_comparison_ended_says_so() -> None:
    compared = [
        slower_than_siblings(steady(10.0, 5.0), [steady(1e6, 5.0)], MIB, 1.0),
        answer_timed_out(100.0, 1.0, 1.0),
    ]
    absolute = [below_minimum(speed((0, 0.0), (0, 30.0)), 1000, 30.0), header_timed_out(100.0, 10.0, 30.0)]
    errors = [error for error in compared + absolute if isinstance(error, RetryRange)]
    assert [error.is_comparison for error in errors] == [True, True, False, False]


# --- answers that do not come ---


@pytest.mark.parametrize(("asked_s", "expected"), [(0.0, None), (39.9, None), (40.0, TimedOut), (1000.0, TimedOut)])
def test_an_answer_is_overdue_after_both_limits(asked_s: float, expected: type[RetryRange] | None) -> None:
    error = header_timed_out(asked_s, connect_timeout_s=10.0, read_timeout_s=30.0)
    assert (type(error) if error else None) is expected


@pytest.mark.parametrize(
    ("asked_s", "usual_s", "expected"),
    [
        (MIN_ANSWER_S - 0.01, 0.0, None),
        (MIN_ANSWER_S, 0.0, TooSlow),
        (MIN_ANSWER_S, MIN_ANSWER_S / ANSWER_FACTOR, TooSlow),
        (3.0 * ANSWER_FACTOR - 0.01, 3.0, None),
        (3.0 * ANSWER_FACTOR, 3.0, TooSlow),
    ],
)
def test_an_answer_far_later_than_usual_is_not_waited_for(
    asked_s: float, usual_s: float, expected: type[RetryRange] | None
) -> None:
    error = answer_timed_out(asked_s, usual_s, MIN_ANSWER_S)
    assert (type(error) if error else None) is expected


def test_patience_delays_the_end_of_a_request() -> None:
    assert answer_timed_out(5.0, 0.0, delay_s=5.0) is not None
    assert answer_timed_out(4.9, 0.0, delay_s=5.0) is None


# --- at the end of a file ---


@pytest.mark.parametrize(
    ("rate", "waited_s", "remaining", "is_ended"),
    [
        (100.0, 5.0, 2 * MIN_TAIL_BYTES - 1, True),
        (100.0, 5.0, 2 * MIN_TAIL_BYTES, False),
        (100.0, 5.0, int(100 * MIN_GAIN_S) + 1, True),
        (100.0, 5.0, int(100 * MIN_GAIN_S), False),
        (0.0, 5.0, 1, True),
        (0.0, 5.0, 0, False),
        (100.0, MIN_WAIT_S, 1000, True),
        (100.0, MIN_WAIT_S - 0.1, 1000, False),
    ],
)
def test_a_connection_that_keeps_idle_ones_waiting_for_its_last_bytes_is_ended(
    rate: float, waited_s: float, remaining: int, is_ended: bool
) -> None:
    error = delays_completion(steady(rate, waited_s), remaining, MIN_WAIT_S)
    assert (type(error) if error else None) is (TooSlow if is_ended else None)
    assert not isinstance(error, TooSlow) or error.is_comparison


# --- exact limits ---


def test_the_window_ends_exactly_at_its_length() -> None:
    made = speed((0, 0.0), (1, 1.0), (2, 1.0 + RATE_WINDOW_S - 0.1))
    assert len(made.samples) == 3
    made = speed((0, 0.0), (1, 1.0), (2, 1.0 + RATE_WINDOW_S))
    assert [sample.received for sample in made.samples] == [1, 2]
    assert speed((0, 0.0), (5, RATE_WINDOW_S)).rate == 5 / RATE_WINDOW_S


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([], 0.0),
        ([(0, 7.0)], 0.0),
        ([(0, 7.0), (0, 7.0 + STALLED_S - 0.01)], 0.0),
        ([(0, 7.0), (0, 7.0 + STALLED_S)], STALLED_RATE),
        ([(0, 7.0), (0, 7.1), (0, 7.0 + STALLED_S)], STALLED_RATE),
        ([(9, 7.0), (19, 7.0 + STALLED_S)], 10 / STALLED_S),
    ],
)
def test_a_connection_without_a_byte_has_a_rate_once_it_counts_as_stalled(
    samples: list[tuple[int, float]], expected: float
) -> None:
    assert speed(*samples).effective_rate == pytest.approx(expected)


def test_the_minimum_counts_from_the_first_sample() -> None:
    made = speed((500, 10.0), (500 + 30_000, 40.0))
    assert below_minimum(made, 1000, 30.0) is None
    assert isinstance(below_minimum(speed((500, 10.0), (500 + 29_999, 40.0)), 1000, 30.0), TooSlow)
    assert below_minimum(speed((500, 10.0), (500, 39.9)), 1000, 30.0) is None


@pytest.mark.parametrize(
    ("young_s", "remaining", "is_ended"),
    [
        (OLD_S, MIB, True),
        (OLD_S - 0.1, MIB, False),
        (5.0, int(1000 * MIN_GAIN_S), True),
        (5.0, int(1000 * MIN_GAIN_S) - 1, False),
    ],
)
def test_siblings_prove_something_and_a_rest_is_worth_it_from_exact_limits(
    young_s: float, remaining: int, is_ended: bool
) -> None:
    error = slower_than_siblings(steady(1000.0, 5.0), [steady(1e6, young_s)], remaining, MIN_WAIT_S)
    assert (error is not None) is is_ended


@pytest.mark.parametrize(("young_s", "is_ended"), [(0.2, True), (0.1, False)])
def test_a_young_connection_is_compared_with_siblings_half_as_old(young_s: float, is_ended: bool) -> None:
    error = slower_than_siblings(steady(1000.0, 0.4), [steady(1e6, young_s)], MIB, MIN_WAIT_S)
    assert (error is not None) is is_ended


def test_a_connection_that_gets_faster_is_left_alone() -> None:
    """Slow start: each round trip brings twice as much as the one before."""
    doubling = speed(*[(1000 * 2**step, step / 10) for step in range(9)])
    assert doubling.rate * SLOWER < 2e6 < doubling.recent_rate * SLOWER
    assert slower_than_siblings(doubling, [steady(2e6, 5.0)], MIB, MIN_WAIT_S) is None


@pytest.mark.parametrize(("answer_s", "is_ended"), [(0.06, True), (0.07, False)])
def test_a_connection_to_a_distant_server_has_more_time(answer_s: float, is_ended: bool) -> None:
    watched = Watched(low_speed_limit=0)
    slow, fast = watched.connection(0, answer_s=answer_s), watched.connection(MIB)
    for step in range(5):
        slow.sample, fast.sample = ExchangeStats(step, step / 10), ExchangeStats(step * 100_000, step / 10)
        ended = watched.look(slow, fast)
    assert ended == [is_ended, False]


def test_less_than_a_byte_a_second_is_a_rate_as_well() -> None:
    assert slower_than_siblings(speed((0, 0.0), (1, 2.0)), [steady(1e6, 5.0)], 0, MIN_WAIT_S) is None
    assert slower_than_siblings(speed((0, 0.0), (1, 2.0)), [steady(1e6, 5.0)], 1, MIN_WAIT_S) is not None


# --- the watch ---


@dataclass(eq=False)
class Connection:
    """What the watch sees of a connection worker."""

    exchange: Exchange | None = None
    chunk: Chunk | None = None
    sample: ExchangeStats = field(default_factory=lambda: ExchangeStats(0, 0.0))
    usual_s: float | None = None
    is_retired: bool = False

    def stats(self) -> ExchangeStats:
        return self.sample

    def usual_answer_s(self) -> float | None:
        return self.usual_s


class Watched:
    """A watch over some connections, at a time that the test sets."""

    def __init__(self, **network: Any) -> None:
        self.now = 1000.0
        self.is_idle = False
        settings = replace(NetworkSettings(), **network)
        parts = {"client": SimpleNamespace(settings=settings), "scheduler": self, "clock": lambda: self.now}
        self.watch = SpeedMonitor(cast(Any, SimpleNamespace(**parts)))
        self.rates: dict[int, float] = {}

    @property
    def has_idle_worker(self) -> bool:
        return self.is_idle

    def set_rate(self, chunk: Chunk, rate: float) -> None:
        self.rates[chunk.start] = rate

    def connection(self, start: int = 0, *, asked_s: float | None = 0.0, answer_s: float | None = 0.05) -> Connection:
        """A connection with a chunk; ``asked_s`` before the present time, answered after ``answer_s``."""
        exchange = Exchange(lambda: self.now, lambda _: None, ExchangeStats(0, 0.0))
        if asked_s is not None:
            exchange.sent_at = self.now - asked_s
            exchange.answered_at = None if answer_s is None else exchange.sent_at + answer_s
        return Connection(exchange, Chunk(start, start + MIB, start, start))

    def look(self, *connections: Connection) -> list[bool]:
        """Look at the connections once; returns which of them are ended by now."""
        self.watch.check(cast(Any, connections))
        return [one.exchange is not None and one.exchange.cancel_error is not None for one in connections]


def test_the_scheduler_is_told_the_speed_of_each_connection() -> None:
    watched = Watched()
    one, other, idle = watched.connection(0), watched.connection(MIB), Connection(chunk=Chunk(9, 10, 9, 9))
    starting = Connection(watched.connection().exchange)
    for seconds in (0.0, 1.0):
        one.sample, other.sample = (
            ExchangeStats(int(500 * seconds), seconds),
            ExchangeStats(int(200 * seconds), seconds),
        )
        assert watched.look(one, other, idle, starting) == [False] * 4
    assert watched.rates == {0: 500.0, MIB: 200.0}


def test_a_connection_that_is_ended_is_measured_from_its_next_request_on() -> None:
    watched = Watched(low_speed_limit=1000, low_speed_time=30.0)
    slow = watched.connection()
    assert watched.look(slow) == [False]
    slow.sample = ExchangeStats(0, 30.0)
    assert watched.look(slow) == [True]
    assert slow.chunk is not None
    assert slow.chunk.replacements == 1
    assert slow.exchange is not None
    with pytest.raises(TooSlow, match="less than low_speed_limit"):
        slow.exchange.check()
    slow.exchange = watched.connection().exchange
    slow.sample = ExchangeStats(0, 59.0)
    assert watched.look(slow) == [False]
    slow.sample = ExchangeStats(0, 88.9)
    assert watched.look(slow) == [False]
    slow.sample = ExchangeStats(0, 89.0)
    assert watched.look(slow) == [True]
    assert slow.chunk.replacements == 2


def test_a_new_connection_is_measured_by_itself_and_a_reused_one_goes_on() -> None:
    watched = Watched(low_speed_limit=1000, low_speed_time=30.0)
    one = watched.connection()
    for seconds in (0.0, 1.0):
        one.sample = ExchangeStats(int(1e6 * seconds), seconds)
        watched.look(one)
    assert watched.rates == {0: 1e6}
    one.exchange = watched.connection().exchange
    assert one.exchange is not None
    one.exchange.is_reused = True
    one.sample = ExchangeStats(int(2e6), 2.0)
    watched.look(one)
    assert watched.rates == {0: 1e6}
    one.exchange = watched.connection().exchange
    watched.look(one)
    assert watched.rates == {0: 0.0}
    one.sample = ExchangeStats(int(2e6) + 50, 2.5)
    watched.look(one)
    assert watched.rates == {0: 100.0}
    one.sample = ExchangeStats(int(2e6) + 50, 30.0)
    assert watched.look(one) == [False], "the minimum counts from the first connection on"


@pytest.mark.parametrize(
    ("waited_s", "is_idle", "expected"), [(0.5, False, True), (OLD_S, False, False), (OLD_S, True, True)]
)
def test_the_next_check_follows_soon_while_speeds_are_not_settled_or_a_worker_is_idle(
    waited_s: float, is_idle: bool, expected: bool
) -> None:
    watched = Watched()
    watched.is_idle = is_idle
    one = watched.connection()
    watched.look(one)
    one.sample = ExchangeStats(1000, waited_s)
    assert watched.watch.check(cast(Any, [one])) is expected


def test_a_connection_that_has_gone_is_forgotten() -> None:
    watched = Watched(low_speed_limit=1000, low_speed_time=30.0)
    slow = watched.connection()
    watched.look(slow)
    watched.look()
    slow.sample = ExchangeStats(0, 40.0)
    assert watched.look(slow) == [False], "its time begins again"


@pytest.mark.parametrize("has_chunk", [True, False])
@pytest.mark.parametrize(("asked_s", "is_ended"), [(None, False), (39.9, False), (40.0, True)])
def test_a_request_without_an_answer_is_ended_after_both_time_limits(
    asked_s: float | None, is_ended: bool, has_chunk: bool
) -> None:
    watched = Watched(connect_timeout=10.0, read_timeout=30.0, low_speed_limit=0)
    late = watched.connection(asked_s=asked_s, answer_s=None)
    if not has_chunk:
        late.chunk = None
    assert watched.look(late) == [is_ended]


def test_an_answered_request_is_not_overdue() -> None:
    watched = Watched(connect_timeout=10.0, read_timeout=30.0, low_speed_limit=0)
    assert watched.look(watched.connection(asked_s=1000.0)) == [False]


@pytest.mark.parametrize(
    ("change", "is_ended"),
    [
        ("none", True),
        ("no chunk", False),
        ("request not sent", False),
        ("replaced before", False),
        ("sibling waits", False),
        ("no sibling", False),
    ],
)
def test_a_connection_far_behind_its_siblings_is_replaced(change: str, is_ended: bool) -> None:
    watched = Watched(low_speed_limit=0)
    slow, fast = watched.connection(0), watched.connection(MIB)
    assert slow.chunk is not None
    assert slow.exchange is not None
    if change == "no chunk":
        slow.chunk = None
    elif change == "request not sent":
        slow.exchange.sent_at = None
    elif change == "replaced before":
        slow.chunk.replacements = 3
    connections = [slow] if change == "no sibling" else [slow, fast]
    for step in range(5):
        slow.sample, fast.sample = ExchangeStats(step, step / 4), ExchangeStats(step * 250_000, step / 4)
        if change == "sibling waits" and step == 2:
            fast.exchange = None
        ended = watched.look(*connections)
        assert ended[1:] == [False] * (len(connections) - 1)
    assert ended[0] is is_ended


def test_a_sibling_that_is_new_is_not_compared_with() -> None:
    watched = Watched(low_speed_limit=0)
    slow = watched.connection(0)
    for step in range(9):
        slow.sample = ExchangeStats(step, step / 4)
        watched.look(slow)
    busy = watched.connection(MIB)
    assert watched.look(slow, busy) == [False, False]


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_connection_with_few_bytes_left_is_replaced_if_others_are_idle(is_idle: bool) -> None:
    watched = Watched(low_speed_limit=0)
    watched.is_idle = is_idle
    slow = watched.connection()
    slow.chunk = Chunk(0, 2000, 0, 0)
    for step in range(9):
        slow.sample = ExchangeStats(step, step / 4)
        ended = watched.look(slow)
        if any(ended):
            break
    assert ended == [is_idle]


def test_one_that_is_too_slow_by_itself_says_so_although_others_are_idle() -> None:
    watched = Watched(low_speed_limit=0)
    watched.is_idle = True
    slow, fast = watched.connection(0), watched.connection(MIB)
    slow.chunk = Chunk(0, 2000, 0, 0)
    for step in range(5):
        slow.sample, fast.sample = ExchangeStats(step, step / 4), ExchangeStats(step * 250_000, step / 4)
        watched.look(slow, fast)
    assert slow.exchange is not None
    assert "its siblings up to" in str(slow.exchange.cancel_error)


@pytest.mark.parametrize(
    ("asked_s", "usual_s", "free", "is_ended"),
    [
        (MIN_ANSWER_S, [0.01], "free", True),
        (MIN_ANSWER_S - 0.1, [0.01], "free", False),
        (MIN_ANSWER_S, [0.01], "none", False),
        (MIN_ANSWER_S, [0.01], "dismissed", False),
        (MIN_ANSWER_S, [], "free", False),
        (MIN_WAIT_S, [0.01, 0.2], "free", False),
        (2.0, [0.01, 0.2], "free", True),
    ],
)
def test_an_answer_far_later_than_those_of_the_siblings_is_not_waited_for_while_a_connection_is_free(
    asked_s: float, usual_s: list[float], free: str, is_ended: bool
) -> None:
    watched = Watched(low_speed_limit=0)
    late = watched.connection(asked_s=asked_s, answer_s=None)
    siblings = [watched.connection(number * MIB) for number in range(1, len(usual_s) + 1)]
    for sibling, seconds in zip(siblings, usual_s, strict=True):
        sibling.usual_s = seconds
    others = [*siblings, Connection(is_retired=free == "dismissed")] if free != "none" else siblings
    assert watched.look(late, *others)[0] is is_ended


def test_a_late_answer_is_compared_with_earlier_ones_of_the_same_worker() -> None:
    watched = Watched(low_speed_limit=0)
    late, idle = watched.connection(asked_s=MIN_ANSWER_S, answer_s=None), Connection()
    assert watched.look(late, idle) == [False, False]
    late.usual_s = 0.01
    assert watched.look(late, idle) == [True, False]
