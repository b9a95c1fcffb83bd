"""Slow origins on a real node: jobs of others get their slots, and all come to their ends with what they had."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimedJob, FinishRequest
from tests.conftest import make_data, wait_until
from tests.fleet import Client, Supervisor
from tests.handlers import Drip
from tests.origin import File, Origin
from tests.redis_server import RedisServer
from tests.test_transitions import Queue

SLOW, SHORT, FAST = make_data(12_000), make_data(6_000), make_data(200_000)
RATE = 1500  # bytes/s
LATE_S = 60.0
QUICK: dict[str, Any] = {"max_concurrent_downloads": 3, "workers": 1, "yield_after": "1s", "job_retry_delay": "100ms"}


class World:
    """A queue with slow and fast origins, and one node."""

    def __init__(self, folder: Path, server: RedisServer, stack: ExitStack) -> None:
        self.folder, self.server = folder, server
        self.client = Client(server.client())
        self._stack = stack

    def slow(self, count: int, data: bytes = SHORT, **fields: Any) -> tuple[Origin, list[str]]:
        """Jobs of one more slow origin: eight seconds for SLOW, four for SHORT."""
        origin = self._stack.enter_context(Origin(Drip(150, 0.1, data=data, **fields)))
        return origin, self.push(origin, count)

    def fast(self, count: int) -> list[str]:
        return self.push(self._stack.enter_context(Origin(File(FAST))), count)

    def push(self, origin: Origin, count: int) -> list[str]:
        urls = [f"{origin.url}/{number}" for number in range(count)]
        for number, url in enumerate(urls):
            self.client.push(url, f"{origin.port}-{number}")
        return urls

    def node(self, **supervisor: Any) -> Supervisor:
        settings = {"supervisor": {**QUICK, **supervisor}, "transfer": {"connections": 1}}
        return self._stack.enter_context(Supervisor(self.folder / "one", self.server.url, settings))

    def yielded(self, service: Supervisor) -> list[dict[str, Any]]:
        return service.events("job_yielded")

    def check(self, service: Supervisor, origin: Origin, count: int, data: bytes) -> None:
        for number in range(count):
            assert (service.out / f"{origin.port}-{number}").read_bytes() == data


@pytest.fixture
def world(tmp_path: Path, redis_server: RedisServer) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, redis_server, stack)


def fetched_again(origin: Origin) -> int:
    """How many requests asked for something from another place than the beginning."""
    return sum(one.start > 0 for one in origin.ranges())


def test_fast_jobs_end_while_an_origin_that_sends_next_to_nothing_holds_all_slots(world: World) -> None:
    origin, slow = world.slow(3, SLOW)
    service = world.node()
    wait_until(lambda: len(origin.requests) == 3, LATE_S)
    quick = world.fast(20)
    began = time.monotonic()
    world.client.wait_for(*quick, timeout_s=LATE_S)
    took_s = time.monotonic() - began
    assert not any(world.client.success(url) for url in slow) and took_s < len(SLOW) / RATE, "they had not to wait"
    world.client.wait_for(*slow, timeout_s=LATE_S)
    world.check(service, origin, 3, SLOW)
    yielded = world.yielded(service)
    assert yielded and {one["error.code"] for one in yielded} <= {"slow", "host_share", "far_below"}
    assert fetched_again(origin) == len(origin.requests) - 3 > 0, "what was there was not fetched again"
    for job in world.client.redis.scan_iter(f"{world.client.keys.prefix}job:*"):
        assert world.client.redis.hget(job, "attempts") == b"1", "to yield is no attempt"


def test_slow_origins_of_several_hosts_yield_in_turn(world: World) -> None:
    slow = [world.slow(1, SLOW) for _ in range(3)]
    service = world.node()
    wait_until(lambda: all(origin.requests for origin, _ in slow), LATE_S)
    quick = world.fast(6)
    world.client.wait_for(*quick, timeout_s=LATE_S)
    assert not all(world.client.success(url) for _, urls in slow for url in urls)
    world.client.wait_for(*[url for _, urls in slow for url in urls], timeout_s=LATE_S)
    assert {one["error.code"] for one in world.yielded(service)} <= {"slow", "far_below"}
    for origin, _ in slow:
        world.check(service, origin, 1, SLOW)


def test_fast_jobs_do_not_wait_behind_a_queue_of_slow_ones_of_several_hosts(world: World) -> None:
    slow = [world.slow(10, SLOW) for _ in range(3)]
    world.node()
    wait_until(lambda: sum(len(origin.requests) for origin, _ in slow) >= 3, LATE_S)
    world.client.wait_for(*world.fast(6), timeout_s=LATE_S)
    assert sum(len(origin.requests) for origin, _ in slow) < 15, "few of them were begun meanwhile"


def test_an_origin_without_ranges_comes_to_an_end_too(world: World) -> None:
    """Its jobs restart each time, but may run twice as long each time."""
    origin, slow = world.slow(3, serves_ranges=False)
    service = world.node(host_share="1")
    wait_until(lambda: len(origin.requests) == 3, LATE_S)
    quick = world.fast(5)
    world.client.wait_for(*quick, timeout_s=LATE_S)
    world.client.wait_for(*slow, timeout_s=LATE_S)
    assert world.yielded(service)
    world.check(service, origin, 3, SHORT)


def test_slow_jobs_stay_where_no_job_waits_and_where_none_is_to_yield(world: World) -> None:
    origin, slow = world.slow(2)
    service = world.node(max_concurrent_downloads=2)
    world.client.wait_for(*slow, timeout_s=LATE_S)
    assert world.yielded(service) == [] and len(origin.requests) == 2


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_a_kill_in_the_midst_of_yielding_loses_nothing(world: World, victim: str) -> None:
    origin, slow = world.slow(3)
    service = world.node()
    wait_until(lambda: len(origin.requests) == 3, LATE_S)
    (worker,) = service.workers()
    quick = world.fast(5)
    worker.suspend()  # it is told to yield, and does not hear it
    wait_until(lambda: bool(service.events("job_yielding")), LATE_S)
    os.kill(worker.pid if victim == "worker" else service.pid, signal.SIGKILL)
    if victim == "supervisor":
        worker.kill()
        service.wait()
        service.start()
    world.client.wait_for(*quick, *slow, timeout_s=LATE_S)
    world.check(service, origin, 3, SHORT)


def test_while_redis_is_away_all_go_on(world: World) -> None:
    origin, slow = world.slow(3)
    service = world.node(yield_after="2s")
    wait_until(lambda: len(origin.requests) == 3, LATE_S)
    world.fast(3)
    os.kill(world.server.pid, signal.SIGSTOP)
    ended = threading.Event()
    try:
        assert not ended.wait(3.5)
        assert world.yielded(service) == [] and len(origin.requests) == 3
    finally:
        os.kill(world.server.pid, signal.SIGCONT)
    world.client.wait_for(*slow, timeout_s=LATE_S)


# --- the transition ---


@pytest.fixture
def queue(redis_server: RedisServer) -> Queue:
    return Queue(redis_server.client())


def yields(queue: Queue, claimed: ClaimedJob, delay_s: float = 60.0) -> None:
    ending = FinishRequest(claimed.lease, Disposition.YIELD, note={"label": "slow"}, delay_s=delay_s)
    assert queue.does.finish("a", [ending, ending]) == ["OK", "DUP"]


def test_a_job_that_yields_goes_behind_all_that_waits_and_its_run_does_not_count(queue: Queue) -> None:
    queue.push("x")
    for count in range(1, 4):
        (claimed,) = queue.claim()
        assert (claimed.attempts, claimed.yields) == (1, count - 1)
        queue.push(f"n{count}")
        queue.push(f"l{count}", priority="low")
        queue.drop_in(queue_job(f"i{count}"))
        yields(queue, claimed)
        kept = queue.job("x")
        assert (kept["state"], kept["attempts"], kept["yields"], queue.ready()) == (
            "delayed",
            "0",
            str(count),
            [f"n{count}"],
        )
        queue.pass_delays()
        others = queue.names(3)
        assert sorted(others) == [f"i{count}", f"l{count}", f"n{count}"] and "yielded" not in queue.job("x")
        for one in queue.claim(0, known=[]):
            queue.finish(one.lease, "success")
    event = next(fields for _, fields in queue.client.xrevrange(queue.keys.events) if b"yield" in fields.values())
    assert (event[b"event"], event[b"outcome"], event[b"note"]) == (b"job_requeued", b"yield", b'{"label":"slow"}')


def queue_job(name: str) -> bytes:
    return f'{{"url": "http://host/{name}", "save_path": "{name}"}}'.encode()


def test_a_job_that_yielded_has_its_turn_however_many_wait(queue: Queue) -> None:
    queue.push("x")
    (claimed,) = queue.claim()
    yields(queue, claimed)
    queue.push(*(f"n{number}" for number in range(40)))
    queue.pass_delays()
    assert "x" in queue.ids(21, known=[])


@pytest.mark.parametrize("verb", ["retry", "promote", "pause", "cancel"])
def test_operators_have_their_way_with_a_job_that_yielded(queue: Queue, verb: str) -> None:
    queue.push("x", "n")
    (claimed,) = queue.claim()
    yields(queue, claimed)
    queue.admin.execute(verb, "x")
    states = {"retry": "queued", "promote": "queued", "pause": "paused", "cancel": "cancelled"}
    assert queue.state("x") == states[verb]
    if verb == "retry":
        assert queue.ready() == ["n", "x"], "in its own list, not behind"
    if verb == "pause":
        queue.admin.execute("resume", "x")
        queue.pass_delays()
        assert "x" in queue.ids(2, known=[])


def test_what_waits_is_told_by_host(queue: Queue) -> None:
    assert queue.does.waiting_hosts("a", order="fifo") == {}
    queue.push("x", "y", priority="high")
    queue.push("z")
    queue.drop_in(b'{"url": "https://U@Other:80/1", "save_path": "o"}', b"no job")
    assert queue.does.waiting_hosts("a", order="fifo") == {"host": 3, "other:80": 1, "": 1}
    queue.client.lpush(queue.keys.ready("normal"), "gone")
    queue.admin.execute("pause", "z")
    (_claimed,) = queue.claim()
    assert queue.does.waiting_hosts("a", order="lifo") == {"host": 1, "other:80": 1, "": 1}, "none that cannot be taken"
    queue.drop_in(*(queue_job(f"q{number}") for number in range(600)))
    assert sum(queue.does.waiting_hosts("a", order="fifo", most=100).values()) == 201


@pytest.mark.parametrize("how", ["halted", "drained"])
def test_nothing_waits_for_who_may_take_nothing(queue: Queue, how: str) -> None:
    queue.push("x")
    prefix = queue.keys.prefix
    if how == "halted":
        queue.client.set(f"{prefix}halted", 1)
    else:
        queue.client.sadd(f"{prefix}drained", "node")
    assert queue.does.waiting_hosts("node-00000001", order="fifo") == {}
