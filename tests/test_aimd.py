"""How many should work at once: the control alone, with servers that are simulated."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlpool.transfer.aimd import Aimd
from dlpool.transfer.hostshares import TEMPO, HostShares, dealt

LOOK_S = 0.25
MIB = 1024 * 1024
Throughput = Callable[[int], float]


class World:
    """A server that brings so much to so many connections, admits ``most`` of them, and a control that looks."""

    def __init__(self, throughput: Throughput, *, most: int = 1000, start: int = 4) -> None:
        self.control = Aimd(1, 16, start, TEMPO)
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
                self.control.refused(self._now, "server_busy")
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
    assert gaps[0] >= TEMPO.rest_s
    assert gaps[-1] >= 4 * TEMPO.rest_s


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
    control = Aimd(1, 16, 8, TEMPO)
    assert [control.refused(1.0 + number / 100, "connection") for number in range(8)] == [True] + 7 * [False]
    assert (control.level, control.reason) == (4, "connection")


def test_answers_that_come_late_again_and_again_are_a_bad_sign() -> None:
    control = Aimd(1, 16, 8, TEMPO)
    quick = [control.answered(number, 0.05) for number in range(10)]
    one_slow = [control.answered(10.0, 2.0), control.answered(11.0, 0.05)]
    assert not any(quick + one_slow)
    assert [control.answered(12.0, 2.0), control.answered(13.0, 2.0)] == [False, True]
    assert (control.level, control.reason) == (4, "latency")


def test_a_server_that_is_always_slow_to_answer_is_none_that_has_become_slow() -> None:
    control = Aimd(1, 16, 8, TEMPO)
    assert not any(control.answered(number, 5.0) for number in range(20))


def test_after_a_pause_the_level_stays_and_its_throughput_is_measured_anew() -> None:
    world = World(each_limited).pass_time(3.0)
    world.control.restart()
    world.throughput = all_limited
    assert world.pass_time(10).control.level == 16


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["sample", "refused", "late", "restart"]), st.floats(0.0, 3.0), st.integers(0, 20),
        st.integers(0, 10**9),
    ),
    max_size=200,
)  # fmt: skip


@given(st.integers(1, 8), st.integers(8, 64), st.integers(1, 64), EVENTS)
def test_whatever_happens_it_stays_in_bounds_and_falls_and_rises_in_its_time(
    low: int, high: int, start: int, events: list[tuple[str, float, int, int]]
) -> None:
    control = Aimd(low, high, start, TEMPO)
    now, done, fell = 0.0, 0, -1e9
    for name, seconds, busy, size in events:
        now, done, before = now + seconds, done + size, control.level
        if name == "sample":
            control.sample(now, done, busy)
        elif name == "refused":
            control.refused(now, "server_busy")
        elif name == "late":
            control.answered(now, seconds)
        else:
            control.restart()
        assert low <= control.level <= high
        if control.level > before:
            assert name == "sample"
            assert control.level <= before * 2
            assert now - fell >= TEMPO.rest_s
        if control.level < before and control.reason != "no_gain":
            assert now - fell >= TEMPO.settle_s + TEMPO.measure_s
        fell = now if control.level < before else fell


# --- the downloads of a host ---


@given(st.integers(1, 64), st.lists(st.integers(1, 64), max_size=20))
def test_a_level_is_dealt_evenly_each_has_one_and_nothing_is_left_that_could_be_used(
    level: int, most: list[int]
) -> None:
    shares = dealt(level, most)
    assert all(1 <= share <= limit for share, limit in zip(shares, most, strict=True))
    assert sum(shares) == max(len(most), min(level, sum(most)))
    hungry = [share for share, limit in zip(shares, most, strict=True) if share < limit]
    assert not hungry or max(shares) - min(hungry) <= 1


def test_downloads_of_a_host_share_its_level_and_learn_from_each_other() -> None:
    now = 100.0
    shares = HostShares(lambda: now)
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
