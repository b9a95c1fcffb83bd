"""How many should work at once: the control alone, with servers that are simulated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.aimd import Aimd, ControlParameters
from dlpool.transfer.http.host_connections import CONTROL_PARAMETERS, HostConnections, distribute

LOOK_S = 0.25
MIB = 1024 * 1024
Throughput = Callable[[int], float]


class World:
    """A server that brings so much to so many connections, admits ``most`` of them, and a control that looks."""

    def __init__(self, throughput: Throughput, *, most: int = 1000, start: int = 4) -> None:
        self.control = Aimd(1, 16, start, CONTROL_PARAMETERS)
        self.levels: list[int] = []
        self.throughput = throughput
        self.most = most
        self._now = 100.0
        self._done = 0.0

    def pass_time(self, seconds: float, *, used: float = 1.0) -> World:
        """``used``: how much of the level has work."""
        for _ in range(int(seconds / LOOK_S)):
            self._now += LOOK_S
            working = int(min(self.control.level, self.most) * used)
            self._done += self.throughput(working) * LOOK_S
            if self.control.level > self.most:
                self.control.record_refusal(self._now, "server_busy")
            self.control.sample(self._now, int(self._done), working)
            self.levels.append(self.control.level)
        return self


def each_limited(connections: int) -> float:
    return 2.0 * MIB * connections


def all_limited(connections: int) -> float:
    return 50.0 * MIB


def test_it_doubles_within_seconds_where_each_connection_is_limited() -> None:
    world = World(each_limited).pass_time(3.0)
    assert world.control.level == 16
    assert world.control.reason == "growth"
    assert set(world.levels) == {4, 8, 16}


def test_it_goes_back_where_more_bring_no_more() -> None:
    world = World(all_limited).pass_time(3.0)
    assert (world.control.level, world.control.reason) == (4, "no_gain")


def test_it_tries_again_one_more_and_less_and_less_often() -> None:
    levels = World(all_limited).pass_time(120).levels
    tries = [index for index, (before, after) in enumerate(pairwise(levels)) if after > before]
    assert max(levels[tries[0] + 2 + 4 :]) == 5
    gaps = [(after - before) * LOOK_S for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= CONTROL_PARAMETERS.pause_s
    assert gaps[-1] >= 4 * CONTROL_PARAMETERS.pause_s


@pytest.mark.parametrize("most", range(1, 16))
def test_it_finds_how_many_a_server_admits(most: int) -> None:
    world = World(each_limited, most=most).pass_time(60)
    world.levels.clear()
    world.pass_time(120)
    assert world.levels.count(most) > 0.9 * len(world.levels)
    assert max(world.levels) <= most + 1


def test_it_grows_again_when_the_server_gives_more() -> None:
    world = World(each_limited, most=2).pass_time(20)
    assert world.control.level == 2
    world.most = 1000
    assert world.pass_time(60).control.level == 16


def test_what_is_not_used_is_not_raised() -> None:
    assert World(each_limited).pass_time(60, used=0.75).control.level == 4


def test_a_burst_of_bad_signs_is_one() -> None:
    control = Aimd(1, 16, 8, CONTROL_PARAMETERS)
    assert [control.record_refusal(1.0 + number / 100, "connection") for number in range(8)] == [True] + 7 * [False]
    assert (control.level, control.reason) == (4, "connection")


def test_answers_that_come_late_again_and_again_are_a_bad_sign() -> None:
    control = Aimd(1, 16, 8, CONTROL_PARAMETERS)
    quick = [control.record_latency(number, 0.05) for number in range(10)]
    one_slow = [control.record_latency(10.0, 2.0), control.record_latency(11.0, 0.05)]
    assert not any(quick + one_slow)
    assert [control.record_latency(12.0, 2.0), control.record_latency(13.0, 2.0)] == [False, True]
    assert (control.level, control.reason) == (4, "latency")


def test_a_server_that_is_always_slow_to_answer_is_none_that_has_become_slow() -> None:
    control = Aimd(1, 16, 8, CONTROL_PARAMETERS)
    assert not any(control.record_latency(number, 5.0) for number in range(20))


def test_after_a_pause_the_level_stays_and_its_throughput_is_measured_anew() -> None:
    world = World(each_limited).pass_time(3.0)
    world.control.restart()
    world.throughput = all_limited
    assert world.pass_time(10).control.level == 16


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sample", "refused", "late", "restart"]),
        st.floats(0.0, 3.0),
        st.integers(0, 20),
        st.integers(0, 10**9),
    ),
    max_size=200,
)


@given(st.integers(1, 8), st.integers(8, 64), st.integers(1, 64), EVENTS)
def test_whatever_happens_it_stays_in_bounds_and_falls_and_rises_in_its_time(
    low: int, high: int, start: int, events: list[tuple[str, float, int, int]]
) -> None:
    control = Aimd(low, high, start, CONTROL_PARAMETERS)
    now, done, fell = 0.0, 0, -1e9
    for name, seconds, busy, size in events:
        now, done, before = now + seconds, done + size, control.level
        if name == "sample":
            control.sample(now, done, busy)
        elif name == "refused":
            control.record_refusal(now, "server_busy")
        elif name == "late":
            control.record_latency(now, seconds)
        else:
            control.restart()
        assert low <= control.level <= high
        if control.level > before:
            assert name == "sample"
            assert control.level <= before * 2
            assert now - fell >= CONTROL_PARAMETERS.pause_s
        if control.level < before and control.reason != "no_gain":
            assert now - fell >= CONTROL_PARAMETERS.settle_s + CONTROL_PARAMETERS.measure_s
        fell = now if control.level < before else fell


# --- exactly when ---

SLOW = ControlParameters(settle_s=1.0, measure_s=2.0, pause_s=10.0, max_pause_s=45.0)


class Bench:
    """A control, and measures of a throughput that is given for each."""

    def __init__(self, start: int, *, low: int = 1, high: int = 16) -> None:
        self.control = Aimd(low, high, start, SLOW)
        self.now = 0.5
        self._done = 1000.0
        self.control.sample(self.now, 1000, start)

    def step(self, seconds: float, rate: float, busy: int | None = None) -> None:
        """Let ``seconds`` pass with ``rate`` bytes/s and take a sample."""
        self.now += seconds
        self._done += rate * seconds
        self.control.sample(self.now, int(self._done), self.control.level if busy is None else busy)

    def measure(self, rate: float, *, settles: bool = True) -> tuple[int, str]:
        """Measure this throughput once, after a change of the level or right after the last measure."""
        if settles:
            self.step(SLOW.settle_s, rate)
        self.step(SLOW.measure_s, rate)
        return self.control.level, self.control.reason


def test_a_new_control_says_that_it_starts() -> None:
    assert repr(Aimd(1, 16, 4, CONTROL_PARAMETERS)) == "<Aimd 4 (start), 0/s>"


def test_a_measure_begins_when_the_level_has_settled_and_ends_in_its_time() -> None:
    bench, rates = Bench(16), []
    for rate in (100.0, 900.0, 40.0, 80.0):  # from 0.5 s to 2.5 s
        bench.step(0.5, rate)
        rates.append(bench.control.rate)
    for rate in (10.0, 20.0, 30.0, 40.0):
        bench.step(0.5, rate)
        rates.append(bench.control.rate)
    assert rates == [0.0] * 5 + [37.5] * 3
    assert (bench.control.level, bench.control.reason) == (16, "start")  # it cannot grow


def test_each_measure_is_of_its_own_time() -> None:
    bench = Bench(16)
    bench.measure(500.0)
    bench.measure(100.0, settles=False)
    assert bench.control.rate == 100.0


@pytest.mark.parametrize(("busy", "is_used"), [(10, True), (9, True), (8, False)])
def test_a_measure_counts_if_nearly_all_of_the_level_was_used(busy: int, is_used: bool) -> None:
    bench = Bench(10)
    bench.step(1.0, 0.0)
    bench.step(2.0, 500.0, busy)
    assert bench.control.rate == (500.0 if is_used else 0.0)


@pytest.mark.parametrize(
    ("start", "before", "after", "level", "reason"),
    [
        (4, 400.0, 500.0, 16, "growth"),  # a quarter more, for twice as many
        (4, 400.0, 498.0, 4, "no_gain"),
        (1, 400.0, 400.0, 1, "no_gain"),
        (1, 400.0, 500.0, 4, "growth"),
    ],
)
def test_growth_must_bring_its_part(start: int, before: float, after: float, level: int, reason: str) -> None:
    bench = Bench(start)
    assert bench.measure(before) == (2 * start, "growth")
    assert bench.measure(after) == (level, reason)


def test_the_level_stays_below_its_limit() -> None:
    bench = Bench(4, high=6)
    assert bench.measure(400.0) == (6, "growth")
    assert bench.measure(4000.0) == (6, "growth")
    bench = Bench(6, high=6)
    assert bench.measure(400.0) == (6, "start")


def rests(bench: Bench, number: int) -> list[float]:
    """Return the seconds from each of ``number`` vain tries to the next one, in a world of constant throughput."""
    found: list[float] = []
    fell = bench.now
    while len(found) < number:
        before = bench.control.level
        bench.measure(400.0)
        if bench.control.level > before:
            found.append(bench.now - fell)
        elif bench.control.level < before:
            fell = bench.now
    return found


def test_the_rest_after_a_vain_try_doubles_up_to_a_limit() -> None:
    bench = Bench(4)
    bench.measure(400.0)
    bench.measure(400.0)
    # a measure every 3 s: the first at or after 10, 20, 40, 45 and 45 seconds
    assert rests(bench, 5) == [12.0, 21.0, 42.0, 45.0, 45.0]


def test_a_try_that_paid_makes_the_next_rest_short_again() -> None:
    bench = Bench(4)
    bench.measure(400.0)
    bench.measure(400.0)
    assert rests(bench, 2) == [12.0, 21.0]
    assert bench.measure(4000.0) == (6, "growth")
    assert bench.measure(4000.0) == (5, "no_gain")
    assert rests(bench, 1) == [12.0]


def test_after_the_first_vain_try_it_grows_by_one() -> None:
    bench = Bench(4)
    levels = [bench.measure(rate)[0] for rate in (400.0, 400.0)]
    rests(bench, 1)
    assert [*levels, bench.control.level] == [8, 4, 5]


@pytest.mark.parametrize(
    ("after_s", "level"),
    [(0.0, 8), (2.9, 8), (3.0, 4)],  # from 16: as long as what was begun before may still fail
)
def test_a_second_bad_sign_counts_when_the_first_retreat_must_have_shown(after_s: float, level: int) -> None:
    control = Aimd(1, 16, 16, SLOW)
    assert control.record_refusal(100.0, "connection")
    assert control.record_refusal(100.0 + after_s, "server_busy") == (level == 4)
    assert (control.level, control.reason) == (level, "server_busy" if level == 4 else "connection")


@pytest.mark.parametrize(("low", "start", "level"), [(1, 1, 1), (3, 5, 3), (1, 5, 2)])
def test_a_bad_sign_halves_the_level_down_to_its_limit(low: int, start: int, level: int) -> None:
    control = Aimd(low, 16, start, SLOW)
    control.record_refusal(100.0, "connection")
    assert control.level == level


def test_a_bad_sign_during_a_try_leads_back_to_the_level_that_paid() -> None:
    bench = Bench(6)
    bench.measure(400.0)
    bench.control.record_refusal(bench.now, "connection")
    assert bench.control.level == 6


def test_after_a_bad_sign_the_lower_level_is_measured_again() -> None:
    bench = Bench(6)
    bench.measure(400.0)
    bench.control.record_refusal(bench.now, "connection")
    assert bench.measure(10.0) == (6, "connection")
    bench.control.record_refusal(bench.now, "connection")
    assert bench.measure(5.0) == (3, "connection")
    assert bench.control.rate == 5.0


@pytest.mark.parametrize(
    ("answers", "is_late"),
    [
        ([1.0, 4.5, 100.0], False),  # four times the usual, and half a second more
        ([1.0, 4.51, 100.0], True),
        ([1.0, 2.0, 4.88, 100.0], False),  # the usual is 1.1 s
        ([1.0, 2.0, 4.92, 100.0], True),
        ([2.0, 1.0, 4.6, 100.0], True),  # the usual falls at once
        ([100.0, 100.0], False),
        ([1.0, 100.0, 1.0, 100.0], False),
    ],
)
def test_which_answers_are_late(answers: list[float], is_late: bool) -> None:
    control = Aimd(1, 16, 8, SLOW)
    assert [control.record_latency(100.0, seconds) for seconds in answers][-1] == is_late
    assert (control.level, control.reason) == ((4, "latency") if is_late else (8, "start"))


def test_late_answers_change_nothing_at_the_lowest_level() -> None:
    control = Aimd(2, 16, 2, SLOW)
    assert not any(control.record_latency(100.0, seconds) for seconds in (1.0, 100.0, 100.0, 100.0))
    assert (control.level, control.reason) == (2, "start")


def test_after_a_pause_throughput_of_before_is_no_measure() -> None:
    bench = Bench(4)
    bench.measure(4000.0)
    bench.control.restart()
    bench.step(0.0, 0.0)
    assert bench.measure(10.0) == (16, "growth")


# --- the downloads of a host ---


@given(st.integers(1, 64), st.lists(st.integers(1, 64), max_size=20))
def test_a_level_is_distributed_evenly_each_has_one_and_nothing_is_left_that_could_be_used(
    level: int, most: list[int]
) -> None:
    shares = distribute(level, most)
    assert all(1 <= share <= limit for share, limit in zip(shares, most, strict=True))
    assert sum(shares) == max(len(most), min(level, sum(most)))
    hungry = [share for share, limit in zip(shares, most, strict=True) if share < limit]
    assert not hungry or max(shares) - min(hungry) <= 1


def test_downloads_of_a_host_share_its_level_and_learn_from_each_other() -> None:
    now = 100.0
    shares = HostConnections(lambda: now)
    first = shares.join("h", 100, limit=16)
    second = shares.join("h", 100, limit=16)
    other = shares.join("elsewhere", 100, limit=16)
    assert [one.wanted for one in (first, second, other)] == [2, 2, 4]
    received = 0
    for _ in range(20):
        now += LOOK_S
        received += first.wanted * MIB
        for one in (first, second):
            one.report(received, one.wanted)
    assert [one.wanted for one in (first, second, other)] == [8, 8, 4]
    first.leave()
    assert second.wanted == 16
    shares.refused("h", "server_busy")
    assert second.report(received, 16) == "server_busy"
    assert second.wanted == 8
    second.leave()
    assert shares.level("h", 64) == 8
    now += 3600
    shares.join("another", 1, limit=16)
    assert shares.level("h", 64) == 4


def test_bad_signs_lead_down_to_one_connection_and_are_of_their_host_only() -> None:
    now = 100.0
    shares = HostConnections(lambda: now)
    shares.refused("h", "server_busy")  # nobody downloads from it
    share, other = shares.join("h", 100, limit=16), shares.join("other", 100, limit=16)
    for wanted in (2, 1, 1):
        shares.refused("h", "server_busy")
        share.report(0, 1)
        assert (share.wanted, other.wanted) == (wanted, 4)
        now += 10.0
    share.leave()
    shares.refused("h", "server_busy")
    shares.answered("h", 1.0)


def test_late_answers_of_a_host_lower_its_share() -> None:
    shares = HostConnections(lambda: 100.0)
    share, other = shares.join("h", 100, limit=16), shares.join("other", 100, limit=16)
    for seconds in (0.1, 60.0, 60.0):
        shares.answered("h", seconds)
    assert (share.report(0, 1), share.wanted) == ("latency", 2)
    assert (other.report(0, 1), other.wanted) == ("start", 4)
