"""What a node knows of origin hosts, by a clock that passes when told: jobs at once, holds, and limits."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from dlpool.config import LimitSettings, Settings
from dlpool.jobs.host_slots import HostLimit
from dlpool.service.host_concurrency import STEP_S, WINDOW_S, HostConcurrency
from dlpool.service.host_limits import HostLimits, authority_of
from tests.fakes import Clock, Lines

MOST = 16


class Node:
    """The counts of a node, its clock and its log."""

    def __init__(self) -> None:
        self.clock, self.lines = Clock(), Lines()
        log: Any = self.lines
        self.jobs = HostConcurrency(MOST, is_auto=True, log=log, clock=self.clock)

    def refuse(self, *, busy: int, times: int = 1, name: str = "h") -> None:
        for _ in range(times):
            self.jobs.record_refusal(name, lambda: busy)

    def level(self, name: str = "h") -> int:
        """How many jobs at once the host may have."""
        return next((busy for busy in range(MOST) if not self.jobs.has_free_slot(name, partial(int, busy))), MOST)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize(
    ("busy", "times", "level"),
    [(1, 1, 1), (2, 1, 1), (3, 1, 1), (4, 1, 2), (5, 1, MOST), (8, 1, MOST), (8, 2, 4), (9, 2, MOST), (9, 3, 4)],
)
def test_a_quarter_of_its_jobs_turned_away_halves_a_hosts_jobs(busy: int, times: int, level: int, node: Node) -> None:
    node.refuse(busy=busy, times=times)
    assert node.level() == level and node.jobs.is_limited("h") == (level < MOST)
    said = [] if level == MOST else [("info", "host_jobs_changed", {"host": "h", "jobs": level, "reason": "refused"})]
    assert node.lines.kept == said


@pytest.mark.parametrize(("pause_s", "level"), [(0.0, 4), (WINDOW_S, 4), (WINDOW_S + 0.5, MOST)])
def test_refusals_add_up_for_a_while(pause_s: float, level: int, node: Node) -> None:
    node.refuse(busy=8)
    node.clock.now += pause_s
    node.refuse(busy=8)
    assert node.level() == level
    node.clock.now += WINDOW_S
    node.refuse(busy=8)
    assert node.level() == 4 or level == 4


@pytest.mark.parametrize(("pause_s", "level"), [(0.0, 4), (WINDOW_S - 0.5, 4), (WINDOW_S, 1)])
def test_after_a_step_back_nothing_counts_for_a_while(pause_s: float, level: int, node: Node) -> None:
    node.refuse(busy=8, times=2)
    node.clock.now += pause_s
    node.refuse(busy=2)
    assert node.level() == level


def test_refusals_of_before_a_step_back_count_no_more(node: Node) -> None:
    node.refuse(busy=8, times=2)
    node.clock.now += WINDOW_S
    node.refuse(busy=12)
    assert node.level() == 4


@pytest.mark.parametrize(
    ("pause_s", "level"),
    [(STEP_S - 0.5, 4), (STEP_S, 5), (2 * STEP_S + 0.5, 6), (11 * STEP_S, 15), (12 * STEP_S, MOST)],
)
def test_one_more_job_at_a_time(pause_s: float, level: int, node: Node) -> None:
    node.refuse(busy=8, times=2)
    node.lines.kept.clear()
    node.clock.now += pause_s
    assert node.level() == level and node.jobs.is_limited("h") == (level < MOST)
    said = [("info", "host_jobs_changed", {"host": "h", "jobs": level, "reason": "growth"})] if level > 4 else []
    assert node.lines.kept == said
    node.clock.now += STEP_S - 0.5
    assert node.level() == level + (level == 4)


def test_hosts_are_forgotten_when_they_have_been_good_for_long(node: Node) -> None:
    node.refuse(busy=8, times=2)
    node.refuse(busy=8, name="once")
    node.jobs.forget_idle()
    assert node.jobs.limited_hosts == 1 and set(node.jobs._hosts) == {"h", "once"}
    node.clock.now += WINDOW_S - 0.5
    node.jobs.forget_idle()
    assert set(node.jobs._hosts) == {"h", "once"}
    node.clock.now += 0.5
    node.jobs.forget_idle()
    assert set(node.jobs._hosts) == {"h"}
    node.clock.now += MOST * STEP_S - WINDOW_S - 0.5
    node.jobs.forget_idle()
    assert node.jobs.limited_hosts == 1
    node.clock.now += 0.5
    node.jobs.forget_idle()
    assert node.jobs.limited_hosts == 0 and node.jobs._hosts == {} and not node.jobs.is_limited("h")


# --- holds ---


@pytest.mark.parametrize(
    ("first_s", "pause_s", "second_s", "is_news"),
    [
        (10, 0, 10, False),
        (10, 0, 11, False),
        (10, 0, 11.5, True),
        (10, 4, 7, False),
        (10, 4, 7.5, True),
        (10, 12, 1, False),
        (10, 12, 1.5, True),
        (10, 10, 1, False),
        (0.5, 0, 1.5, True),
    ],
)
def test_a_hold_is_news_when_it_is_longer_by_a_second(
    first_s: float, pause_s: float, second_s: float, is_news: bool
) -> None:
    clock = Clock()
    hosts = HostLimits(Settings(), clock)
    hosts.hold("H", first_s)
    clock.now += pause_s
    assert hosts.hold("h", second_s) == is_news
    assert hosts.hold_remaining_s("http://H/x") == (
        second_s if is_news else max(0.0, first_s - pause_s if first_s > 1 else 0.0)
    )


def test_a_hold_that_is_over_and_a_url_that_is_none_are_not_waited_for() -> None:
    clock = Clock()
    hosts = HostLimits(Settings(), clock)
    assert hosts.hold_remaining_s("http://h/x") == 0.0
    hosts.hold("h", 5)
    hosts.hold("other", 50)
    clock.now += 10
    assert [hosts.hold_remaining_s(url) for url in ("http://h/", "http://other/", "http://none/", "http://[")] == [
        0,
        40,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("limits", "of_host", "url", "expected"),
    [
        ((None, None), (None, None), "http://h/x", None),
        ((2, None), (None, None), "http://h/x", None),
        ((2, None), (None, None), "http://g/x", HostLimit("g", 2)),
        ((None, 3.0), (None, None), "http://g/x", HostLimit("g", None, 3.0)),
        ((None, None), (2, None), "http://h/x", HostLimit("h", 2)),
        ((None, None), (None, 0.5), "http://h:81/x", HostLimit("h", None, 0.5)),
        ((None, None), (2, None), "http://g/x", None),
        ((2, None), (None, None), "no url", None),
        ((2, None), (None, None), "http://[", None),
    ],
)
def test_what_a_host_is_spared(
    limits: tuple[Any, Any], of_host: tuple[Any, Any], url: str, expected: HostLimit | None
) -> None:
    settings = Settings(limits=LimitSettings(*limits), hosts={"h": LimitSettings(*of_host)})
    assert HostLimits(settings, Clock()).limit(url) == expected
    reloaded = HostLimits(Settings(), Clock())
    assert reloaded.limit(url) is None
    reloaded.apply(settings)
    assert reloaded.limit(url) == expected


@pytest.mark.parametrize(
    ("url", "authority"),
    [("http://H:81/x", "h:81"), ("http://u:p@h/x", "h"), ("http://a@b@h/", "h"), ("x", ""), ("http://[", "")],
)
def test_host_and_port_of_a_url(url: str, authority: str) -> None:
    assert authority_of(url) == authority
