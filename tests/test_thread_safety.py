"""Locks that are needed: each operation is interrupted at each bytecode by another one, with the lock and without it.

With the lock every outcome is that of one operation after the other; without it some outcome is not, so that these
tests fail when a lock is taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dlpool import DownloadQueue, DownloadStats, DownloadTask
from dlpool.errors import Cancelled, ShortBody, TimedOut
from dlpool.service.wire.counters import WorkerCounters
from dlpool.transfer.chunks import Chunk, ChunkMap, plan_chunks
from dlpool.transfer.http.answer import ByteRange
from dlpool.transfer.http.exchange import Exchange, ExchangeStats
from dlpool.transfer.http.host_connections import HostConnections
from dlpool.transfer.http.limits import HostHolds, NetworkMonitor, RateLimit
from dlpool.transfer.retry import RangeAttempt
from dlpool.transfer.scheduler import ChunkScheduler
from tests.interleaving import Operation, violations

MIB = 1024 * 1024
HIGH, LOW = (DownloadTask("http://h/x", ".", priority=priority) for priority in (0, 1))


@dataclass(frozen=True)
class Case:
    """An object, two operations on it, and what is looked at in the end. ``lock``: the name of its attribute."""

    make: Callable[[], Any]
    first: Operation
    second: Operation
    seen: Callable[[Any], object]
    lock: str = "_lock"


def noon() -> float:
    return 100.0


def a_queue(*tasks: DownloadTask) -> Callable[[], DownloadQueue]:
    def make() -> DownloadQueue:
        queue = DownloadQueue()
        for task in tasks:
            queue.add_task(task)
        return queue

    return make


def a_worn_queue() -> DownloadQueue:
    """All but one task were removed, and that one's removal rebuilds the heap."""
    queue = DownloadQueue()
    for task in (others := [DownloadTask("http://h/x", ".") for _ in range(17)]):
        queue.add_task(task)
    queue.add_task(LOW)
    for task in others:
        queue.remove_task(task.id)
    return queue


def in_queue(queue: DownloadQueue) -> object:
    names = {HIGH.id: "high", LOW.id: "low"}
    return [names[task.id] for task in queue.get_all_tasks()], len(queue)


def some_stats() -> DownloadStats:
    stats = DownloadStats()
    for name in ("a", "b"):
        stats.start_task(name)
        stats.update_task_progress(name, 50, 100, 10.0)
    return stats


def in_stats(stats: DownloadStats) -> object:
    return stats.completed, stats.failed, sorted(stats.errors), stats.get_completed_bytes(), stats.get_total_bytes()


def a_scheduler() -> ChunkScheduler:
    """The chunk of "ann", of which nothing is written, and a free one."""
    scheduler = ChunkScheduler(noon)
    scheduler.load_plan(plan_chunks([ByteRange(0, 2 * MIB)], 2 * MIB, 2, MIB // 16), "ann")
    return scheduler


def a_complete_scheduler() -> ChunkScheduler:
    """Two chunks that have been written, and whose owners do not know it yet."""
    scheduler = a_scheduler()
    taken("bob")(scheduler)
    for chunk in scheduler._map.chunks:
        scheduler.commit_write(chunk, scheduler.begin_write(chunk, MIB))
    return scheduler


def a_served_scheduler() -> ChunkScheduler:
    """The connections of "ann" and "bob" have been receiving bodies for longer than is remembered."""
    times = [0.0, 0.0]
    scheduler = ChunkScheduler(lambda: times.pop() if times else 100.0)
    scheduler.begin_body("ann")
    scheduler.begin_body("bob")
    return scheduler


def a_scheduler_with_a_body() -> ChunkScheduler:
    scheduler = ChunkScheduler(noon)
    scheduler.begin_body("ann")
    return scheduler


def a_scheduler_with_a_gap() -> ChunkScheduler:
    """The first chunk is written, which its owner does not know yet, so is the next; of the others a part is."""
    scheduler = ChunkScheduler(noon)
    chunks = [Chunk(0, 10, 10, 10), Chunk(10, 20, 20, 20), Chunk(20, 30, 25, 25), Chunk(30, 40, 31, 31)]
    scheduler.load_plan(ChunkMap(chunks), "nobody")
    chunks[0].owner, chunks[2].owner, chunks[3].owner = "ann", "bob", "cid"
    chunks[2].rate = 1.0
    return scheduler


def write(scheduler: ChunkScheduler) -> object:
    """Write the rest of the first chunk."""
    chunk = scheduler._map.chunks[0]
    allowed = scheduler.begin_write(chunk, MIB)
    scheduler.commit_write(chunk, allowed)
    return allowed


def let_go(index: int) -> Operation:
    """Give back the first chunk, or the last."""
    return lambda scheduler: scheduler.release_chunk(scheduler._map.chunks[index])


def taken(owner: str) -> Operation:
    def take(scheduler: ChunkScheduler) -> object:
        chunk = scheduler.take_chunk(owner)
        return (chunk.start, chunk.end) if chunk is not None else None

    return take


def in_scheduler(scheduler: ChunkScheduler) -> object:
    chunks = [(chunk.start, chunk.position, chunk.end, chunk.owner) for chunk in scheduler._map.chunks]
    return chunks, scheduler.retries, scheduler.finished_chunks, str(scheduler.scope.error), scheduler._writing


def stopped(reason: str) -> Operation:
    def stop(scheduler: ChunkScheduler) -> object:
        scheduler.scope.cancel(Cancelled(reason))
        return str(scheduler.scope.error)

    return stop


def told(scheduler: ChunkScheduler) -> object:
    snapshot = scheduler.snapshot()
    return snapshot.written == sum(chunk.position - chunk.start for chunk in snapshot.chunks)


def failed(scheduler: ChunkScheduler) -> object:
    return scheduler.count_failure(scheduler._map.chunks[0], ShortBody("short"), RangeAttempt(0, 0.0)).attempts


def a_watch() -> NetworkMonitor:
    watch = NetworkMonitor(noon)
    watch.failed("a")
    watch.failed("b")
    return watch


def an_exchange() -> Exchange:
    return Exchange(noon, lambda _seconds: None, ExchangeStats(0, 0.0))


def aborted(reason: str) -> Operation:
    def abort(exchange: Exchange) -> object:
        exchange.cancel(TimedOut(reason))
        return str(exchange.cancel_error)

    return abort


def reported(host: str, received: int) -> Operation:
    def report(shares: HostConnections) -> object:
        share = shares.join(host, 4, limit=8)
        share.report(received, 1)
        return share.wanted > 0

    return report


def in_shares(shares: HostConnections) -> object:
    return sorted((name, host.received, len(host.members)) for name, host in shares._hosts.items())


CASES = {
    "DownloadQueue: remove and add": Case(
        a_worn_queue, lambda queue: queue.remove_task(LOW.id), lambda queue: queue.add_task(HIGH), in_queue
    ),
    "DownloadQueue: take and remove": Case(
        a_queue(LOW), lambda queue: queue.get_next_task() is LOW, lambda queue: queue.remove_task(LOW.id), in_queue
    ),
    "DownloadQueue: add and list": Case(
        a_queue(), lambda queue: queue.add_task(LOW), lambda queue: len(queue.get_all_tasks()) - len(queue), in_queue
    ),
    "DownloadStats: complete and complete": Case(
        some_stats, lambda stats: stats.complete_task("a"), lambda stats: stats.complete_task("b"), in_stats
    ),
    "DownloadStats: fail and fail": Case(
        some_stats, lambda stats: stats.fail_task("a", "why"), lambda stats: stats.fail_task("b", "why"), in_stats
    ),
    "DownloadStats: complete and look": Case(
        some_stats, lambda stats: stats.complete_task("a"), lambda stats: stats.get_total_bytes(), in_stats
    ),
    "DownloadStats: update and complete": Case(
        some_stats,
        lambda stats: stats.update_active_task("a", 60, 100, 1.0),
        lambda stats: stats.complete_task("a"),
        in_stats,
    ),
    "ChunkScheduler: take and take": Case(a_scheduler, taken("bob"), taken("cid"), in_scheduler, "_changed"),
    "ChunkScheduler: write and steal": Case(
        a_scheduler,
        write,
        lambda scheduler: (taken("bob")(scheduler), taken("cid")(scheduler)),
        in_scheduler,
        "_changed",
    ),
    "ChunkScheduler: snapshot and write": Case(a_scheduler, told, write, lambda _scheduler: None, "_changed"),
    "ChunkScheduler: let go and let go": Case(a_complete_scheduler, let_go(0), let_go(-1), in_scheduler, "_changed"),
    "ChunkScheduler: fail and fail": Case(a_scheduler, failed, failed, in_scheduler, "_changed"),
    "ChunkScheduler: stop and stop": Case(a_scheduler, stopped("one"), stopped("two"), in_scheduler, "_changed"),
    "ChunkScheduler: seal and stop": Case(
        a_scheduler, lambda scheduler: scheduler.scope.seal(), stopped("one"), in_scheduler, "_changed"
    ),
    "ChunkScheduler: look at the front and let go": Case(
        a_scheduler_with_a_gap, lambda scheduler: scheduler.contiguous_end(), let_go(0), in_scheduler, "_changed"
    ),
    "ChunkScheduler: look at what is written and let go": Case(
        a_scheduler_with_a_gap, lambda scheduler: scheduler.written(), let_go(0), in_scheduler, "_changed"
    ),
    "ChunkScheduler: look for the slowest and let go": Case(
        a_scheduler_with_a_gap, lambda scheduler: scheduler.slowest_s(), let_go(0), in_scheduler, "_changed"
    ),
    "ChunkScheduler: retire and retire": Case(
        a_served_scheduler,
        lambda scheduler: scheduler.retire_if_redundant("ann"),
        lambda scheduler: scheduler.retire_if_redundant("bob"),
        lambda scheduler: sorted(scheduler._retired),
        "_changed",
    ),
    "ChunkScheduler: refused and refused": Case(
        a_scheduler_with_a_body,
        lambda scheduler: scheduler.others_receiving("ann"),
        lambda scheduler: scheduler.others_receiving("bob"),
        lambda scheduler: scheduler.is_crowded,
        "_changed",
    ),
    "ChunkScheduler: look for bodies and begin one": Case(
        a_served_scheduler,
        lambda scheduler: scheduler.others_received_recently("cid"),
        lambda scheduler: scheduler.begin_body("dan"),
        lambda scheduler: sorted(scheduler._received_at),
        "_changed",
    ),
    "ChunkScheduler: look for bodies and forget one": Case(
        a_served_scheduler,
        lambda scheduler: scheduler.others_received_recently("cid"),
        lambda scheduler: scheduler.remove_worker("ann"),
        lambda scheduler: sorted(scheduler._received_at),
        "_changed",
    ),
    "ChunkScheduler: end a body and look for bodies": Case(
        a_served_scheduler,
        lambda scheduler: scheduler.end_body("ann"),
        lambda scheduler: scheduler.others_receiving("bob") > 0 or scheduler.others_received_recently("bob"),
        lambda scheduler: sorted(scheduler._receiving),
        "_changed",
    ),
    "RateLimit: spend and spend": Case(
        lambda: RateLimit(1000, noon),
        lambda limit: limit.spend(100) > 0,
        lambda limit: limit.spend(300) > 0,
        lambda limit: limit._level,
    ),
    "RateLimit: spend and set": Case(
        lambda: RateLimit(1000, noon),
        lambda limit: limit.spend(100),
        lambda limit: setattr(limit, "rate", None),
        lambda limit: limit._level,
    ),
    "HostHolds: hold and hold": Case(
        lambda: HostHolds(noon),
        lambda gate: gate.hold("a", 10.0),
        lambda gate: gate.hold("b", 20.0),
        lambda gate: (gate.wait_s("a"), gate.wait_s("b")),
    ),
    "NetworkMonitor: look and fail": Case(
        a_watch, lambda watch: watch.is_away("a"), lambda watch: watch.failed("c"), lambda watch: watch.is_away("c")
    ),
    "NetworkMonitor: look and answer": Case(
        a_watch, lambda watch: watch.is_away("a"), lambda watch: watch.answered("c"), lambda watch: watch._failed
    ),
    "HostConnections: two downloads": Case(
        lambda: HostConnections(noon), reported("a", 10), reported("a", 20), in_shares
    ),
    "HostConnections: two hosts": Case(lambda: HostConnections(noon), reported("a", 10), reported("b", 20), in_shares),
    "Exchange: abort and abort": Case(
        an_exchange, aborted("one"), aborted("two"), lambda exchange: str(exchange.cancel_error)
    ),
    "WorkerCounters: add and add": Case(
        WorkerCounters, lambda tally: tally.add("x", 1), lambda tally: tally.add("x", 2), lambda tally: tally.snapshot()
    ),
    "WorkerCounters: add and look": Case(
        WorkerCounters,
        lambda tally: tally.count_range(1.0),
        lambda tally: len(tally.snapshot()) in (0, 2),
        WorkerCounters.snapshot,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_no_switch_of_threads_is_seen_under_the_lock(name: str) -> None:
    case = CASES[name]
    tried, found = violations(
        case.make, case.first, case.second, case.seen, lock=(lambda made: made, case.lock), is_locked=True
    )
    assert tried > 5
    assert not found, found[0]


@pytest.mark.parametrize("name", CASES)
def test_without_the_lock_a_switch_of_threads_is_seen(name: str) -> None:
    case = CASES[name]
    _tried, found = violations(
        case.make, case.first, case.second, case.seen, lock=(lambda made: made, case.lock), is_locked=False
    )
    assert found, "the test would not notice a missing lock"
