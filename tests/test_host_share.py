"""The part of a node's slots that one origin host gets while jobs of other hosts wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob, compose_job
from dlpool.jobs.transitions import HostSlotShares, Transitions
from dlpool.service.host_limits import authority_of
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from tests.bench import job_of
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor
from tests.origin import Origin
from tests.redis_server import RedisServer
from tests.test_host_limits import SMALL, Crowd, Door

SID = "a"
FAR = 490  # jobs that are passed over to find one of another host; with 500 it is not looked for


class Queue:
    """A queue on a real Redis, whose jobs are told by their hosts: ``"aab"`` are two of a and one of b."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client()
        self.keys = QueueKeys()
        self.does = Transitions(self.client, self.keys)
        self.does.heartbeat(SID, [], lease_s=30, info={"sid": SID})
        self.passed = 0
        self._count = 0

    def drop_in(self, hosts: str) -> None:
        """Push as clients do."""
        for host in hosts:
            self.client.lpush(self.keys.intake, self._raw(host))

    def push(self, hosts: str, priority: str = "normal") -> None:
        jobs = [PushedJob.parse(self._raw(host, priority=priority)) for host in hosts]
        self.does.push([(job, f"j{self._count}-{number}") for number, job in enumerate(jobs)])

    def claim(self, slots: int, parts: HostSlotShares | None, order: str = "fifo") -> tuple[str, bool]:
        """The hosts of what is claimed, in turn, and whether one of them got more than its part."""
        claim = self.does.claim(SID, None, slots, lease_s=30, order=order, shares=parts)
        assert claim is not None
        self.passed = claim.skipped
        return "".join(authority_of(json.loads(one.raw)["url"]) for one in claim.jobs), claim.is_share_exceeded

    def _raw(self, host: str, **own: object) -> bytes:
        self._count += 1
        return compose_job(f"http://{host}/{self._count}", f"{self._count}", **own)


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server)


CLAIMS: dict[str, tuple[str, int, int, dict[str, int], str, bool]] = {
    # what waits, free slots, most of one host, what is held: what is claimed, and whether more than its part
    "no other host waits": ("aaaaa", 4, 3, {}, "aaaa", True),
    "no other host waits, part is taken": ("aaa", 1, 3, {"a": 3}, "a", True),
    "another waits behind": ("aaaaaab", 4, 3, {}, "aaab", False),
    "two others wait": ("aaaabb", 5, 3, {}, "aaabb", False),
    "one other for two slots": ("aaaaab", 5, 3, {}, "aaaba", True),
    "part is taken": ("aaab", 1, 3, {"a": 3}, "b", False),
    "more than its part is taken": ("aaab", 1, 3, {"a": 5}, "b", False),
    "part is not taken": ("aaab", 1, 3, {"a": 2}, "a", False),
    "only others": ("bcd", 3, 2, {"a": 2}, "bcd", False),
    "two hosts with their part": ("aabbc", 2, 1, {"a": 1, "b": 1}, "ca", True),
    "no parts": ("aaaaab", 5, 0, {"a": 9}, "aaaaa", False),
    "nothing waits": ("", 2, 1, {"a": 1}, "", False),
    "far behind": ("a" * FAR + "b", 1, 1, {"a": 1}, "b", False),
    "behind a flood": ("a" * 800 + "b", 1, 1, {"a": 1}, "b", False),
    "behind a flood, the older first": ("a" * 1200 + "cab" + "a" * 400, 3, 1, {"a": 1}, "cba", True),
    "amid a flood": ("a" * 501 + "b" + "a" * 500, 1, 1, {"a": 1}, "a", True),
}


@pytest.mark.parametrize("way", ["intake", "ready"])
@pytest.mark.parametrize("case", CLAIMS)
def test_a_host_gets_its_part_of_the_slots_while_jobs_of_others_wait(queue: Queue, case: str, way: str) -> None:
    waiting, slots, most, hosts, claimed, is_alone = CLAIMS[case]
    (queue.drop_in if way == "intake" else queue.push)(waiting)
    assert queue.claim(slots, HostSlotShares(most, hosts)) == (claimed, is_alone)
    left = len(waiting) - len(claimed)
    assert queue.client.llen(queue.keys.intake) + queue.client.llen(queue.keys.ready("normal")) == left
    rest, _ = queue.claim(len(waiting) + 1, None)
    assert sorted(rest + claimed) == sorted(waiting), "none is lost, none comes twice"


SLOW: dict[str, tuple[str, int, HostSlotShares, str, bool]] = {
    "slow ones have their part": ("sstb", 2, HostSlotShares(3, {}, ("s", "t"), 2, 2), "bs", False),
    "slow ones have more": ("sstb", 1, HostSlotShares(3, {}, ("s", "t"), 0, 2), "b", False),
    "slow ones have less": ("sstb", 3, HostSlotShares(3, {}, ("s", "t"), 2, 1), "sbs", False),
    "only slow ones": ("sst", 2, HostSlotShares(3, {}, ("s", "t"), 0, 0), "ss", False),
    "a slow one with its own part": ("sstb", 2, HostSlotShares(1, {"s": 1}, ("s", "t"), 2, 1), "tb", False),
    "a fast one with more than its part": ("sbbsb", 3, HostSlotShares(1, {"b": 1}, ("s",), 1, 0), "sbb", False),
    "fast ones with their part, slow ones with theirs": (
        "ssbab",
        3,
        HostSlotShares(1, {"a": 1, "b": 1}, ("s",), 1, 1),
        "bab",
        False,
    ),
    "no slow one waits": ("abc", 2, HostSlotShares(3, {}, ("s",), 0, 2), "ab", False),
}


@pytest.mark.parametrize(
    ("waiting", "slots", "ahead", "claimed", "is_alone"),
    [
        ("aabc", 3, 3, "bc", False),  # the second one of b would exceed its part
        ("aab", 2, 1, "b", False),
        ("aaab", 3, 1, "baa", True),  # a slot is free: one more of a, and then all may
        ("aa", 2, 2, "", False),
    ],
)
def test_jobs_ahead_never_exceed_the_part_of_a_host(
    queue: Queue, waiting: str, slots: int, ahead: int, claimed: str, is_alone: bool
) -> None:
    queue.drop_in(waiting)
    assert queue.claim(slots, HostSlotShares(1, {"a": 1}, ahead=ahead)) == (claimed, is_alone)


@pytest.mark.parametrize("case", SLOW)
def test_slow_hosts_get_their_part_together_while_jobs_of_others_wait(queue: Queue, case: str) -> None:
    waiting, slots, parts, claimed, is_alone = SLOW[case]
    queue.drop_in(waiting)
    assert queue.claim(slots, parts) == (claimed, is_alone)


def test_the_newest_of_another_host_comes_first_where_the_newest_do(queue: Queue) -> None:
    queue.drop_in("bcaaa")
    assert queue.claim(2, HostSlotShares(1, {"a": 1}), order="lifo") == ("cb", False)


def test_one_of_another_host_in_a_later_list_comes_before_more_of_the_same(queue: Queue) -> None:
    queue.push("aa", priority="high")
    queue.drop_in("a")
    queue.push("ab", priority="low")
    assert queue.claim(2, HostSlotShares(1, {"a": 1})) == ("ba", True)


def test_what_was_passed_over_is_counted(queue: Queue) -> None:
    queue.push("aa")
    queue.drop_in("aaabc")
    assert queue.claim(2, HostSlotShares(1, {"a": 1})) == ("bc", False)
    assert queue.passed == 2 + 3 + 3


def test_places_of_jobs_that_are_gone_are_no_jobs(queue: Queue) -> None:
    queue.push("abc")
    gone = queue.client.lrange(queue.keys.ready("normal"), 1, 1)[0].decode()
    queue.client.delete(queue.keys.job(gone))
    assert queue.claim(1, HostSlotShares(1, {"a": 1})) == ("c", False)


TEXTS: dict[str, tuple[bytes, str]] = {
    "as JSON is written here": (b'{"url": "http://h:80/x", "save_path": "x"}', "h:80"),
    "without spaces": (b'{"url":"http://h/x","save_path":"x"}', "h"),
    "escaped slashes": (rb'{"url": "http:\/\/h\/x", "save_path": "x"}', "h"),
    "the path first": (rb'{"save_path": "\"url\": \"http://other/\"", "url": "http://h/x"}', "h"),
    "capitals": (b'{"url": "HTTP://Host.Example/x", "save_path": "x"}', "host.example"),
    "user": (b'{"url": "http://user:p@ss@h/x", "save_path": "x"}', "h"),
    "an address": (b'{"url": "http://[::1]:8080/x", "save_path": "x"}', "[::1]:8080"),
    "a query at once": (b'{"url": "http://h?x@y", "save_path": "x"}', "h"),
    "nothing after it": (b'{"url": "http://h", "save_path": "x"}', "h"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_host_is_told_by_the_text_of_a_job(queue: Queue, case: str) -> None:
    raw, host = TEXTS[case]
    assert authority_of(json.loads(raw)["url"]) == host
    queue.client.lpush(queue.keys.intake, raw)
    queue.drop_in("b")
    assert queue.claim(1, HostSlotShares(1, {host: 1}))[0] == "b", "that host has its part"


NONE = [
    b"",
    b"{}",
    b'{"url": 5}',
    b'{"url": "',
    b'"url"' * 20_000,
    b'"url"' + b" " * 60_000,
    b'{"url": "' + b"a" * 60_000,
    b'{"url": "//' + b"@" * 60_000,
    b"\xff\x00" * 9,
]


@pytest.mark.parametrize("raw", NONE, ids=range(len(NONE)))
def test_a_text_without_a_host_is_taken_in_its_turn_and_at_once(queue: Queue, raw: bytes) -> None:
    for _ in range(20):
        queue.client.lpush(queue.keys.intake, raw + b" ")
    began = time.monotonic()
    for _ in range(20):
        claim = queue.does.claim(SID, None, 1, lease_s=30, order="fifo", shares=HostSlotShares(1, {"a": 1, "": 3}))
        assert claim is not None and len(claim.jobs) == 1 and not claim.is_share_exceeded
    assert time.monotonic() - began < 5


# --- what a supervisor says ---


def table_of(part: float, capacity: int, hosts: Sequence[str]) -> InFlightTable:
    table = InFlightTable(part)
    table.set_capacity(capacity)
    for number, host in enumerate(hosts):
        assert table.add(InFlightJob(job_of(f"{number}"), 0.0, authority=host))
    return table


@pytest.mark.parametrize(
    ("part", "capacity", "hosts", "parts"),
    [
        (0.75, 5, "aaab", HostSlotShares(3, {"a": 3})),
        (0.75, 4, "aaa", HostSlotShares(3, {"a": 3})),
        (0.75, 5, "aab", HostSlotShares(3, {"a": 2, "b": 1})),  # two are free
        (0.75, 1, "", HostSlotShares(1, {})),
        (0.75, 2, "a", HostSlotShares(1, {"a": 1})),
        (0.5, 64, "a" * 40, HostSlotShares(32, {"a": 40})),
        (0.0, 5, "ab", HostSlotShares(1, {"a": 1, "b": 1})),
        (1.0, 5, "aaaa", None),
    ],
)
def test_a_ledger_knows_the_part_of_a_host(
    part: float, capacity: int, hosts: str, parts: HostSlotShares | None
) -> None:
    table = table_of(part, capacity, hosts)
    found = table.host_shares(table.free_slots())
    assert (found and (found.limit, found.held)) == (parts and (parts.limit, parts.held))


@pytest.mark.parametrize(
    ("part", "parts"),
    [(0.75, HostSlotShares(3, {"s": 2, "b": 1}, ("s", "t"), 1, 2)), (1.0, HostSlotShares(5, {}, ("s", "t"), 0, 2))],
)
def test_a_ledger_knows_the_part_of_slow_hosts(part: float, parts: HostSlotShares) -> None:
    table = table_of(part, 5, "ssb")
    table.slow_hosts = ("s", "t")
    assert table.host_shares(table.free_slots()) == parts


def test_a_job_counts_for_its_host_as_long_as_it_takes_room() -> None:
    table = table_of(0.5, 4, "aaab")
    one, other, third, last = table.all()
    steps: tuple[tuple[Callable[[], object], dict[str, int]], ...] = (
        (lambda: table.set_phase(one, InFlightPhase.AHEAD), {"a": 3, "b": 1}),
        (lambda: table.remove(str(one.lease)), {"a": 2, "b": 1}),
        (lambda: table.set_phase(other, InFlightPhase.RECORDING), {"a": 1, "b": 1}),
        (lambda: table.set_phase(other, InFlightPhase.WAITING), {"a": 2, "b": 1}),
        (lambda: table.remove(str(last.lease)), {"a": 2}),
        (lambda: table.remove(str(third.lease)), {"a": 1}),
    )
    for step, left in steps:
        step()
        parts = table.host_shares(table.free_slots())
        assert parts is not None and parts.held == left


# --- a real supervisor ---


def test_jobs_of_another_host_end_beside_one_that_holds_all_it_gets(tmp_path: Path, redis_server: RedisServer) -> None:
    client = Client(redis_server.client())
    with Door() as door, Origin(door) as slow, Origin(SMALL) as fast:
        for number in range(12):
            client.push(f"{slow.url}/{number}", f"slow{number}")
        quick = [f"{fast.url}/{number}" for number in range(20)]
        for number, url in enumerate(quick):
            client.push(url, f"fast{number}")
        with Supervisor(tmp_path / "one", redis_server.url, {"supervisor": {"max_concurrent_downloads": 4}}):
            client.wait_for(*quick)
            assert len(slow.requests) <= 4, "its part, and one more when none of the others waits any longer"
            door.open.set()
            client.wait_for(*[f"{slow.url}/{number}" for number in range(12)])


def test_a_host_uses_all_slots_when_no_other_host_waits(tmp_path: Path, redis_server: RedisServer) -> None:
    client, crowd = Client(redis_server.client()), Crowd(stay_s=0.3)
    with Origin(crowd) as origin:
        for number in range(12):
            client.push(f"{origin.url}/{number}", f"{number}")
        with Supervisor(tmp_path / "one", redis_server.url, {"supervisor": {"max_concurrent_downloads": 4}}):
            wait_until(lambda: crowd.most == 4, 30)
            client.wait_for(*[f"{origin.url}/{number}" for number in range(12)])
    assert crowd.most == 4
