"""``max_concurrent_downloads = auto``: a node takes as many jobs at once as bring more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LoggingSettings, SupervisorSettings
from dlpool.observe.log import Log
from dlpool.service.frames import EndedFrame
from dlpool.service.slots import START, TEMPO, Slots, is_refusal
from tests.conftest import make_data, sha256, wait_until
from tests.desk import desk_of, running
from tests.origin import File

KIB, MIB = 1024, 1024 * 1024
MEASURE_S = int(TEMPO.settle_s + TEMPO.measure_s)


class Node:
    """A node whose jobs each bring as much, and whose second passes when told."""

    def __init__(self, log: Log, **settings: Any) -> None:
        self.now = 100.0
        self.slots = Slots(SupervisorSettings(**settings), log.logger("supervisor"), lambda: self.now)
        self.received = {1: 0, 2: 0}
        self.refused = self.over_memory = 0

    def pass_time(self, seconds: float, throughput: Callable[[int], int] = lambda busy: busy * MIB) -> int:
        """All slots are in use; returns how many there are then."""
        for _ in range(int(seconds)):
            self.now += 1
            self.received[1] += throughput(self.slots.level)
            self.slots.look(self.received, self.slots.level, refused=self.refused, over_memory=self.over_memory)
        return self.slots.level


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path, LoggingSettings(), service="dlpool", version="0", node_id="n")
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


def test_one_job_that_is_turned_away_is_no_sign_many_are(node: Node) -> None:
    assert node.pass_time(MEASURE_S + 2) == 10
    node.refused = 2
    assert node.pass_time(1) == 10
    node.refused = 3
    assert node.pass_time(1) == START


def test_the_bytes_of_a_worker_that_died_are_not_lost_and_counters_that_fall_count_nothing(node: Node) -> None:
    node.pass_time(3)
    node.received = {2: 0, 3: 0}
    assert node.pass_time(0) == START
    node.received[1] = 5
    assert node.pass_time(MEASURE_S + 2) == 2 * START


@pytest.mark.parametrize(
    ("ending", "label", "expected"),
    [
        ("retry", "server_busy", True), ("retry", "connection", True), ("retry", "timeout", True),
        ("retry", "dns", False), ("retry", "remote_changed", False), ("failed", "not_found", False),
        ("succeeded", "", False),
    ],
)  # fmt: skip
def test_which_endings_mean_that_there_is_too_much_to_do(ending: str, label: str, expected: bool) -> None:
    assert is_refusal(EndedFrame("a.1", ending, label=label)) == expected


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
