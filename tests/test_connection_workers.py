"""The connection threads of one download: how many there are, and which of them leave. Threads that wait for work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dlpool import errors, threads
from dlpool.transfer.chunks import Chunk, ChunkMap
from dlpool.transfer.context import DownloadPlan
from dlpool.transfer.http.exchange import ExchangeStats
from dlpool.transfer.http.remote_resource import RemoteResource
from dlpool.transfer.scheduler import ChunkScheduler
from dlpool.transfer.worker import ConnectionWorker
from dlpool.transfer.workers import DESCRIPTORS, RESERVED_DESCRIPTORS, SLOW_DOWNLOAD_S, ConnectionWorkers
from tests.conftest import FAST, wait_until
from tests.contexts import context_of
from tests.fakes import Clock, Events


class Bench:
    """The workers of a download whose only chunk has an owner, so that further ones wait."""

    def __init__(self, connections: int | str = 4, **resource: Any) -> None:
        self.clock, self.events = Clock(), Events()
        self.scheduler = ChunkScheduler(self.clock)
        settings = replace(FAST, connections=connections, max_connections=16)
        self.context = context_of(self.scheduler, self.clock, self.events, settings)
        self.hosts = self.context.client.host_connections
        self.hosts._clock = self.clock
        place: Any = None
        self.plan = DownloadPlan(RemoteResource(1000, **resource), place, True, 0)
        self.workers = ConnectionWorkers(self.context)
        self.first = self.workers.add(ConnectionWorker(self.context, self.plan))
        self.chunk = Chunk(0, 1000, 0, 0)
        self.scheduler.load_plan(ChunkMap([self.chunk]), self.first)

    def begin(self, connections: int, most: int) -> None:
        """Start the first worker, which does nothing, and the others."""

        def idle() -> None:
            self.scheduler.wait_until_over(60.0)

        assert self.workers.start_first(self.first, idle)
        self.workers.start(self.plan, connections, most)

    def close(self) -> None:
        self.scheduler.scope.cancel(errors.Cancelled("the end"))
        for thread in self.workers._threads.values():
            thread.join(20.0)

    def work(self, *workers: ConnectionWorker) -> None:
        """These workers have a request in flight."""
        for worker in self.workers.all:
            worker.exchange = self.context.new_exchange(ExchangeStats(0, 0.0)) if worker in workers else None


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    """Make benches; their threads end with the test."""
    made: list[Bench] = []

    def one(*arguments: Any, **options: Any) -> Bench:
        made.append(Bench(*arguments, **options))
        return made[-1]

    yield one
    for bench in made:
        bench.close()


def no_thread(_work: object, _name: str) -> threads.DaemonThread:
    raise errors.NoThread("cannot start a thread")


# --- a fixed number ---


def test_as_many_workers_are_started_as_are_wanted(make: Callable[..., Bench]) -> None:
    bench = make()
    assert (bench.workers.most_at_once, bench.workers.received, bench.workers.all) == (1, 0, (bench.first,))
    bench.begin(3, 3)
    assert (bench.workers.most_at_once, len(bench.workers.all)) == (3, 3)
    started = list(bench.workers._threads.values())
    assert [(thread.name, thread.daemon) for thread in started] == [(f"dlpool-connection-{n}", True) for n in (1, 2, 3)]
    wait_until(lambda: bench.scheduler._waiting == 2)  # the others have run, and found nothing to do
    bench.workers.adapt(bench.plan)
    bench.workers.release_share()
    assert (len(bench.workers.all), bench.events) == (3, [])


def test_the_end_waits_for_the_threads(make: Callable[..., Bench]) -> None:
    bench = make()
    bench.begin(3, 3)
    bench.scheduler.scope.cancel(errors.Cancelled("cancelled"))
    bench.workers.join(60.0)
    assert not any(thread.is_alive() for thread in bench.workers._threads.values())


def test_all_threads_together_are_waited_for_no_longer_than_was_said(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    bench.begin(3, 3)
    waits: list[float | None] = []

    def join(_thread: threading.Thread, timeout: float | None = None) -> None:
        waits.append(timeout)
        bench.clock.now += 4.0

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "join", join)
        bench.workers.join(5.0)
    assert waits == [5.0, 1.0, 0.0]


@pytest.mark.parametrize("reason", ["too_many_files", "no_threads"])
def test_what_this_machine_does_not_allow_is_done_by_the_caller(
    reason: str, make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make()
    if reason == "no_threads":
        monkeypatch.setattr(threads, "start_thread", no_thread)
    else:
        monkeypatch.setattr(threads, "has_free_descriptors", lambda _number: False)
    assert not bench.workers.start_first(bench.first, lambda: None)
    assert bench.workers._threads == {}
    assert bench.events.named("connections_limited") == [{"connections": 1, "reason": reason}]
    bench.workers.start(bench.plan, 3, 3)
    assert bench.workers.all == (bench.first,)
    assert bench.events.named("connections_limited") == [{"connections": 1, "reason": reason}]  # once


def test_further_connections_may_lack_descriptors(make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make()
    bench.begin(2, 3)
    monkeypatch.setattr(threads, "has_free_descriptors", lambda _number: False)
    bench.workers.start(bench.plan, 3, 3)
    assert len(bench.workers.all) == 2
    assert bench.events.named("connections_limited") == [{"connections": 2, "reason": "too_many_files"}]


def test_a_connection_is_added_only_if_files_can_be_opened_besides(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(threads, "has_free_descriptors", lambda number: not asked.append(number))  # type: ignore[func-returns-value]
    make().begin(2, 2)
    assert asked == [DESCRIPTORS + RESERVED_DESCRIPTORS] * 2


def test_the_limit_of_this_machine_lowers_what_a_host_is_worth(
    make: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make("auto")
    assert bench.workers.start_first(bench.first, lambda: None)
    monkeypatch.setattr(threads, "start_thread", no_thread)
    bench.workers.start(bench.plan, 4, 8)
    assert (bench.workers.all, bench.hosts.level("h.test", 16)) == ((bench.first,), 2)


# --- a second connection for a slow one ---


@pytest.mark.parametrize(
    ("rate", "connections", "resource", "workers"),
    [
        (1000 / SLOW_DOWNLOAD_S, 4, {}, 2),
        (1000 / SLOW_DOWNLOAD_S + 1, 4, {}, 1),
        (0.0, 4, {}, 1),  # its speed is not known yet
        (1.0, 1, {}, 1),
        (1.0, 2, {}, 2),
        (1.0, 4, {"refuses_ranges": True}, 1),
    ],
)
def test_a_lone_connection_gets_help_if_it_is_slow(
    rate: float, connections: int, resource: dict[str, Any], workers: int, make: Callable[..., Bench]
) -> None:
    bench = make(connections, **resource)
    bench.begin(1, 1)
    bench.scheduler.set_rate(bench.chunk, rate)
    bench.workers.add_second(bench.plan)
    assert len(bench.workers.all) == workers
    bench.workers.add_second(bench.plan)
    assert len(bench.workers.all) == workers


@pytest.mark.parametrize("why", ["one body", "two connections", "adaptive"])
def test_no_help_is_given_where_it_is_of_no_use(why: str, make: Callable[..., Bench]) -> None:
    bench = make("auto" if why == "adaptive" else 4)
    if why == "adaptive":
        bench.hosts.record_limit("h.test", 1)
    bench.begin(2 if why == "two connections" else 1, 2)
    before = len(bench.workers.all)
    bench.scheduler.set_rate(bench.chunk, 1.0)
    bench.workers.add_second(replace(bench.plan, has_ranges=why != "one body"))
    assert len(bench.workers.all) == before


# --- a number that is found by trying ---


def test_a_host_says_how_many_there_are(make: Callable[..., Bench]) -> None:
    bench = make("auto")
    bench.begin(1, 8)
    assert len(bench.workers.all) == 4  # START
    bench.workers.adapt(bench.plan)
    assert bench.events == []
    other = bench.hosts.join("h.test", 8, limit=16)
    bench.workers.adapt(bench.plan)
    assert bench.events.named("connections_changed") == [{"host": "h.test", "connections": 2, "reason": "start"}]
    bench.workers.adapt(bench.plan)
    assert len(bench.events.named("connections_changed")) == 1
    other.leave()
    bench.workers.adapt(bench.plan)
    assert [fields["connections"] for fields in bench.events.named("connections_changed")] == [2, 4]
    assert len([worker for worker in bench.workers.all if not worker.is_retired]) == 4
    bench.workers.release_share()
    bench.workers.release_share()
    bench.workers.adapt(bench.plan)
    assert bench.hosts.join("h.test", 8, limit=16).wanted == 4


@pytest.mark.parametrize(("most", "admitted", "workers"), [(1, 16, 2), (2, 16, 2), (8, 3, 3), (8, 16, 4)])
def test_no_more_are_tried_than_file_and_host_allow(
    most: int, admitted: int, workers: int, make: Callable[..., Bench]
) -> None:
    bench = make("auto")
    bench.hosts.record_limit("h.test", admitted)
    bench.begin(2, most)
    assert len(bench.workers.all) == workers
    assert bool(bench.hosts._hosts) is (most > 1)


def test_those_without_a_request_leave_first_and_then_the_youngest(make: Callable[..., Bench]) -> None:
    bench = make("auto")
    bench.begin(4, 8)
    one, two, three, four = bench.workers.all
    bench.work(one, three, four)
    others = [bench.hosts.join("h.test", 8, limit=16)]
    bench.workers.adapt(bench.plan)
    assert [worker.is_retired for worker in (one, two, three, four)] == [False, True, False, True]
    others += [bench.hosts.join("h.test", 8, limit=16) for _ in range(3)]
    bench.workers.adapt(bench.plan)
    assert [worker.is_retired for worker in (one, three)] == [False, True]
    for worker in (two, three, four):
        bench.workers._threads[worker].join(20.0) if worker in bench.workers._threads else None
    bench.workers.adapt(bench.plan)
    assert bench.workers.all == (one,)


def test_the_host_learns_what_came_and_how_many_work(make: Callable[..., Bench]) -> None:
    bench = make("auto")
    bench.begin(4, 8)
    one, two, three, _four = bench.workers.all
    bench.work(one, two, three)
    one._latest = one.exchange
    assert one.exchange is not None
    one.exchange.received = 500
    bench.workers.adapt(bench.plan)
    (member,) = bench.hosts._hosts["h.test"].members
    assert (member.received, member.busy, bench.workers.received) == (500, 3, 500)


def test_what_a_dismissed_worker_received_still_counts(make: Callable[..., Bench]) -> None:
    bench = make("auto")
    bench.begin(4, 8)
    gone = bench.workers.all[-1]
    gone._latest = bench.context.new_exchange(ExchangeStats(700, 1.0))
    bench.scheduler.record_rate(gone, 5.0)
    bench.scheduler.begin_body(bench.workers.all[1])
    bench.scheduler.retire(bench.workers.all[1])
    bench.scheduler.retire(gone)
    bench.workers._threads[gone].join(20.0)
    bench.workers._threads[bench.workers.all[1]].join(20.0)
    bench.scheduler.retire(bench.first)  # whose thread is alive
    bench.workers._reap()
    assert len(bench.workers.all) == 2
    assert bench.first in bench.workers.all
    assert gone not in bench.workers._threads
    assert bench.workers.received == 700
    assert not gone.is_retired  # the scheduler has forgotten it
