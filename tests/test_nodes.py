"""Nodes as they are listed: in an order that lasts, also those that fell silent, until they are forgotten."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from dlpool.jobs.job_admin import NoSuchNode, NotPossible
from dlpool.jobs.keys import QueueKeys, node_of
from dlpool.jobs.nodes import NodeAdmin
from dlpool.jobs.queue_admin import QueueAdmin
from dlpool.jobs.transitions import Transitions
from tests.conftest import wait_until
from tests.fleet import fleet
from tests.processes import run
from tests.redis_server import RedisServer


class Bench:
    """Nodes on a real Redis, without processes."""

    def __init__(self, server: RedisServer) -> None:
        self.client: Any = server.client()
        self.keys = QueueKeys()
        self.transitions = Transitions(self.client, self.keys)
        self.nodes = NodeAdmin(self.client, self.keys)
        self.admin = QueueAdmin(self.client, self.keys)

    def beat(self, sid: str, **info: Any) -> None:
        self.transitions.heartbeat(sid, [], lease_s=30, info={"node": node_of(sid), "lease": 30, "host": "h1", **info})

    def fall_silent(self, sid: str, seconds: float) -> None:
        """Its registration passed so long ago."""
        self.client.zadd(self.keys.supervisors, {sid: (self.client.time()[0] - seconds) * 1000})

    def listed(self) -> list[tuple[str, str]]:
        return [(row["node"], row["state"]) for row in self.nodes.list_nodes()]


@pytest.fixture
def bench(redis_server: RedisServer) -> Bench:
    return Bench(redis_server)


def test_nodes_keep_their_places_whoever_beats_last(bench: Bench) -> None:
    bench.admin.drain("c")
    bench.admin.drain("away")
    for order in ("abcd", "dcba", "badc"):
        for name in order:
            bench.beat(f"{name}-0000000{name}", busy=1, is_low_on_space=name == "b")
        assert bench.listed() == [
            ("a", "working"),
            ("d", "working"),
            ("b", "low on space"),
            ("away", "drained"),
            ("c", "drained"),
        ]


def test_while_the_queue_is_paused_who_has_nothing_to_do_is_halted(bench: Bench) -> None:
    bench.beat("a-00000000", busy=0)
    bench.beat("b-00000000", busy=1)
    assert (bench.admin.pause(), bench.admin.pause()) == (True, False)
    assert bench.listed() == [("b", "working"), ("a", "halted")]


def test_a_node_that_fell_silent_is_lost_for_a_day(bench: Bench) -> None:
    bench.beat("a-00000000", workers_info=[{"pid": 1}])
    bench.fall_silent("a-00000000", 100)
    (row,) = bench.nodes.list_nodes()
    assert (row["node"], row["state"], row["host"]) == ("a", "lost", "h1")
    assert row["seen_at"].endswith("Z") and "workers_info" not in row, "what was true then may not be any more"
    bench.fall_silent("a-00000000", 86_401)
    assert bench.listed() == []


def test_a_node_that_is_there_again_is_not_lost(bench: Bench) -> None:
    for sid in ("a-00000001", "a-00000002"):
        bench.beat(sid)
        bench.fall_silent(sid, 50)
    assert bench.listed() == [("a", "lost")]
    bench.beat("a-00000003")
    assert bench.listed() == [("a", "working")]


def test_a_lost_node_is_forgotten_and_what_it_held_goes_back(bench: Bench) -> None:
    bench.client.lpush(bench.keys.intake, "{}")
    bench.beat("a-00000000")
    claim = bench.transitions.claim("a-00000000", [], 1, lease_s=30, order="fifo")
    assert claim is not None and claim.jobs
    bench.client.lpush(bench.keys.inbox("a-00000000"), "{}")
    with pytest.raises(NotPossible, match="is present"):
        bench.nodes.forget("a")
    bench.fall_silent("a-00000000", 5)
    bench.nodes.drain("a")
    bench.nodes.forget("a")
    assert bench.listed() == []
    assert bench.client.llen(bench.keys.intake) == bench.client.llen(bench.keys.ready("normal")) == 1
    assert not bench.client.exists(bench.keys.supervisor("a-00000000"), bench.keys.drained)


def test_a_node_that_is_drained_and_away_is_forgotten(bench: Bench) -> None:
    bench.admin.drain("a")
    bench.nodes.forget("a")
    assert bench.listed() == []


def test_commands_on_an_unknown_node_fail(bench: Bench) -> None:
    for verb in (bench.nodes.drain, bench.nodes.resume, bench.nodes.forget):
        with pytest.raises(NoSuchNode, match="no node 'x' is known"):
            verb("x")
    assert bench.admin.drained_nodes() == set()


def test_a_killed_supervisor_is_lost_and_one_that_ended_is_not(redis_server: RedisServer, tmp_path: Path) -> None:
    """As its commands tell it: also what the workers of the one that lives do."""
    short = {"lease": "3s", "grace": "1s", "workers": 2, "max_concurrent_downloads": 2}
    redis = ["--redis-url", redis_server.url]
    with fleet(tmp_path, redis_server.url, "a", "b", "c", supervisor=short) as (one, other, third):

        def states() -> dict[int, str]:
            ended = run("nodes", "--json", *redis)
            return {row["pid"]: row["state"] for row in map(json.loads, ended.out.splitlines())}

        pids = [one.pid, other.pid, third.pid]
        assert set(states()) == set(pids)
        one.signal(signal.SIGKILL)
        assert third.stop() == 0
        wait_until(lambda: states() == {pids[0]: "lost", pids[1]: "working"}, 20)
        lost, living = run("nodes", *redis).out.splitlines()[-1].split("\t"), run("nodes", "-v", *redis)
        assert lost[1] == "lost" and lost[-1].endswith("Z")
        assert "WORKER_MEMORY" in living.out and living.out.count("\tready\t0\t1\t") == 2
        assert "lost since" in run("top", *redis).out
        wait_until(lambda: run("nodes", "forget", lost[0], *redis).code == 0, 20)  # it has to stay away for a moment
        assert states() == {pids[1]: "working"}
