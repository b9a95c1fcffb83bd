"""``max_concurrent_downloads = auto``: a node takes as many jobs at once as bring more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LoggingSettings, SupervisorSettings
from dlpool.observe.log import Log
from dlpool.observe.processors import LogOrigin
from dlpool.service.host_concurrency import STEP_S, WINDOW_S, HostConcurrency
from dlpool.service.slots import CONTROL, START, SlotLimit, is_refusal
from dlpool.service.wire.frames import EndedFrame
from dlpool.service.wire.results import AttemptResult
from tests.conftest import make_data, sha256, wait_until
from tests.desk import desk_of, running
from tests.origin import Connection, File, Origin, Request

KIB, MIB = 1024, 1024 * 1024
MEASURE_S = int(CONTROL.settle_s + CONTROL.measure_s)


class Node:
    """A node whose jobs each bring as much, and whose second passes when told."""

    def __init__(self, log: Log, **settings: Any) -> None:
        self.now = 100.0
        self.slots = SlotLimit(SupervisorSettings(**settings), log.logger("supervisor"), lambda: self.now)
        self.received = {1: 0, 2: 0}
        self.over_memory = 0

    def pass_time(self, seconds: float, throughput: Callable[[int], int] = lambda busy: busy * MIB) -> int:
        """All slots are in use; returns how many there are then."""
        for _ in range(int(seconds)):
            self.now += 1
            self.received[1] += throughput(self.slots.level)
            self.slots.sample(self.received, self.slots.level, over_memory=self.over_memory)
        return self.slots.level


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path, LoggingSettings(), LogOrigin("dlpool", "n", version="0"))
    yield made
    made.close()


@pytest.fixture
def node(log: Log) -> Node:
    return Node(log, max_concurrent_downloads="auto", max_slots=32)


def test_a_fixed_number_stays(log: Log) -> None:
    node = Node(log, max_concurrent_downloads=7)
    node.over_memory = 1
    assert node.pass_time(60) == 7


def test_slots_grow_to_their_bound_while_jobs_bring_more(node: Node) -> None:
    assert node.slots.level == START
    assert node.pass_time(MEASURE_S + 2) == 2 * START
    assert node.pass_time(3 * MEASURE_S) == 32


def test_slots_go_back_where_more_jobs_bring_no_more(node: Node) -> None:
    assert node.pass_time(3 * MEASURE_S, lambda busy: 10 * MIB) == START


def test_a_worker_over_its_memory_takes_slots_back(node: Node) -> None:
    assert node.pass_time(MEASURE_S + 2) == 10
    node.over_memory = 1
    assert node.pass_time(1) == START


class Crowd:
    """Jobs of hosts, each as many as it may have, while seconds pass when told."""

    def __init__(self, log: Log, *, is_auto: bool = True) -> None:
        self.now = 100.0
        self.jobs = HostConcurrency(16, is_auto=is_auto, log=log.logger("supervisor"), clock=lambda: self.now)

    def level(self, host: str) -> int:
        """How many jobs at once it may have."""
        counts = [iter((busy,)) for busy in range(16)]
        return next((busy for busy, one in enumerate(counts) if not self.jobs.has_free_slot(host, one.__next__)), 16)

    def refuse(self, host: str, times: int, *, busy: int) -> None:
        for _ in range(times):
            self.jobs.record_refusal(host, lambda: busy)


def test_one_job_that_is_turned_away_is_no_sign_a_quarter_of_a_hosts_jobs_is(log: Log) -> None:
    crowd = Crowd(log)
    crowd.refuse("sick", 1, busy=8)
    assert crowd.level("sick") == 16
    crowd.now += WINDOW_S + 1
    crowd.refuse("sick", 1, busy=8)
    assert crowd.level("sick") == 16, "long after one another they are no sign"
    crowd.refuse("sick", 1, busy=8)
    assert (crowd.level("sick"), crowd.level("well")) == (4, 16)
    crowd.refuse("sick", 4, busy=4)
    assert crowd.level("sick") == 4, "what was begun before says nothing new"
    crowd.jobs.forget_idle()
    assert crowd.jobs.limited_hosts == 1


def test_a_host_that_was_sick_gets_one_job_more_at_a_time(log: Log) -> None:
    crowd = Crowd(log)
    crowd.refuse("h", 1, busy=1)
    assert crowd.level("h") == 1, "never none"
    for more in range(2, 16):
        crowd.now += STEP_S
        crowd.jobs.forget_idle()
        assert crowd.level("h") == more
    crowd.now += STEP_S
    assert crowd.level("h") == 16
    crowd.jobs.forget_idle()
    assert crowd.jobs.limited_hosts == 0


def test_a_fixed_number_of_jobs_is_every_hosts(log: Log) -> None:
    crowd = Crowd(log, is_auto=False)
    crowd.refuse("h", 10, busy=4)
    assert crowd.level("h") == 16


def test_a_sick_host_gets_fewer_jobs_and_slows_no_other(tmp_path: Path) -> None:
    seen = {"most": 0, "now": 0}
    lock = threading.Lock()

    def sick(request: Request, connection: Connection) -> None:
        with lock:
            seen["now"] += 1
            seen["most"] = max(seen["most"], seen["now"])
            is_too_much = seen["now"] > 2
        try:
            if is_too_much:
                connection.answer(503, {}, b"")
            else:
                time.sleep(0.2)
                File(b"x")(request, connection)
        finally:
            with lock:
                seen["now"] -= 1

    settings = {
        "max_concurrent_downloads": "auto",
        "max_slots": 8,
        "workers": 2,
        "job_retry_delay": "100ms",
        "max_attempts": 1000,
        "job_retry_max_delay": "500ms",
    }
    transfer = {"connections": 1, "retries": 0}
    with running(tmp_path, supervisor=settings, transfer=transfer) as both, desk_of(*both) as desk:
        with Origin(sick) as one, Origin(File(b"y")) as other:
            urls = [f"{origin.url}/{number}" for number in range(20) for origin in (one, other)]
            for number, url in enumerate(urls):
                desk.client.push(url, f"f{number}")
            for url in urls:
                desk.client.wait_for(url)
        changes = desk.service.events("host_jobs_changed")
        assert {change["dlpool.host"] for change in changes} == {one.url.removeprefix("http://")}
        assert changes[0]["dlpool.reason"] == "refused"
        assert changes[0]["dlpool.jobs"] < 8


def test_the_bytes_of_a_worker_that_died_are_not_lost_and_counters_that_fall_count_nothing(node: Node) -> None:
    node.pass_time(3)
    node.received = {2: 0, 3: 0}
    assert node.pass_time(0) == START
    node.received[1] = 5
    assert node.pass_time(MEASURE_S + 2) == 2 * START


@pytest.mark.parametrize(
    ("result", "label", "expected"),
    [
        ("retry", "server_busy", True),
        ("retry", "connection", True),
        ("retry", "timeout", True),
        ("retry", "dns", False),
        ("retry", "remote_changed", False),
        ("failed", "not_found", False),
        ("succeeded", "", False),
    ],
)
def test_which_results_mean_an_overload(result: str, label: str, expected: bool) -> None:
    assert is_refusal(EndedFrame("a.1", AttemptResult(result), label=label)) == expected


def test_a_node_with_a_backlog_takes_more_jobs_and_the_rest_stay_in_the_list(tmp_path: Path) -> None:
    data = make_data(MIB)
    settings = {"max_concurrent_downloads": "auto", "max_slots": 8, "workers": 2}
    with (
        running(tmp_path, supervisor=settings, transfer={"connections": 1}) as both,
        desk_of(*both) as desk,
    ):
        desk.serve(File(data, block=16 * KIB, pause_s=0.05))
        urls = [desk.push(number) for number in range(16)]
        wait_until(lambda: desk.origin.open_connections == START)
        assert desk.waiting() >= 16 - START - 1  # one may be reserved
        wait_until(lambda: bool(desk.service.events("slots_changed")), 40)
        desk.client.wait_for(*urls)
        assert all(sha256((desk.folder / str(number)).read_bytes()) == sha256(data) for number in range(16))
        first = desk.service.events("slots_changed")[0]
        assert (first["dlpool.slots"], first["dlpool.reason"]) == (8, "growth")
