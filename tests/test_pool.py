"""The worker processes as their supervisor sees them: wanted, watched, weighed and ended; without processes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import SupervisorSettings
from dlpool.errors import InternalError
from dlpool.service.node.hung_jobs import stacks_file
from dlpool.service.pool import FROZEN_S, MAX_SUMMARIES, MEMORY_S, STOP_S, WorkerStartFailed
from dlpool.service.scheduling import (
    HEALTHY_S,
    RESPAWN_MAX_S,
    RespawnBackoff,
    WaitingJob,
    WorkerSlots,
    assign,
    divide_slots,
)
from dlpool.service.wire.channel import FrameChannel
from dlpool.service.wire.frames import (
    CancelFrame,
    EndedFrame,
    HelloFrame,
    PingFrame,
    RateFrame,
    RetireFrame,
    StatusFrame,
)
from dlpool.service.wire.results import AttemptResult
from dlpool.service.worker import process as worker_module
from dlpool.service.worker_handle import MAX_STACKS, WorkerHandle, remove_old_stacks
from tests.bench import Bench, Process, Worker

MIB = 1024 * 1024
LIMIT_S = SupervisorSettings().worker_timeout


class Spawned(Process):
    """What the pool starts in the place of a process; ``refused`` is what its start raises."""

    made: list[Spawned]
    refused: OSError | None = None

    def __init__(self, target: Any, args: tuple[Any, ...], daemon: bool, name: str) -> None:
        super().__init__(2_100_000_000 + len(self.made))
        self.target, self.arguments, self.daemon, self.name = target, args, daemon, name
        self.sock = args[0].dup()

    def start(self) -> None:
        if self.refused is not None:
            self.sock.close()
            os.close(self.sentinel)
            raise self.refused
        self.made.append(self)


class Pooled(Bench):
    """A bench whose time passes when told; the pool starts nothing real, and its workers get no signals."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **supervisor: Any) -> None:
        super().__init__(folder, **supervisor)
        self.folder = folder
        for module in ("pool", "worker_handle"):
            patch.setattr(f"dlpool.service.{module}.time", self.clock)
        patch.setattr("dlpool.service.pool.replace", lambda _given, **fields: fields)
        self.signals: list[tuple[int, int]] = []
        patch.setattr("dlpool.service.worker_handle.os.kill", lambda pid, number: self.signals.append((pid, number)))
        Spawned.made, Spawned.refused = [], None
        patch.setattr(self.pool._context, "Process", Spawned)
        self.pool._checked_at = self.clock.now
        self.died: list[tuple[int, str]] = []

    def tend(self, seconds: float = 0.0, quarantined: int = 0) -> None:
        """A turn, after that many seconds, each of which the supervisor and its workers were awake."""
        while seconds > FROZEN_S:
            self.clock.now += FROZEN_S
            seconds -= FROZEN_S
            self.pool._check_hung(self.clock.now)
        self.clock.now += seconds
        self.pool.reconcile(quarantined, lambda handle, how: self.died.append((handle.pid, how)))

    def up(self) -> list[WorkerHandle]:
        """The workers that were started say hello."""
        for handle in self.pool.workers.values():
            if not handle.is_ready:
                self.pool.mark_ready(handle)
            handle.last_heard_at = self.clock.now
        return list(self.pool.workers.values())

    def end(self, handle: WorkerHandle, code: int = -9) -> None:
        """The process of a worker ends."""
        handle.process.exitcode = code  # type: ignore[misc]
        handle.mark_exited()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pooled]:
    def made(**supervisor: Any) -> Pooled:
        given = {"workers": 2, "max_concurrent_downloads": 3, **supervisor}
        return Pooled(tmp_path, monkeypatch, **given)

    return made


@pytest.fixture
def bench(make: Callable[..., Pooled]) -> Pooled:
    return make()


# --- how many ---


@pytest.mark.parametrize(
    ("workers", "cpus", "slots", "expected"),
    [(3, 8, 5, [2, 2, 1]), (None, 2, 5, [3, 2]), (None, 8, 2, [1, 1]), (None, None, 3, [3]), (9, 2, 2, [1, 1])],
)
def test_workers_are_as_many_as_settings_or_cores_say_and_share_the_slots(
    make: Callable[..., Pooled], monkeypatch: pytest.MonkeyPatch, workers: Any, cpus: Any, slots: int, expected: Any
) -> None:
    monkeypatch.setattr("dlpool.service.pool.os.cpu_count", lambda: cpus)
    bench = make(workers=workers, max_concurrent_downloads=slots)
    bench.tend()
    assert (
        [handle.slots for handle in bench.pool.workers.values()]
        == expected
        == divide_slots(slots, workers or cpus or 1)
    )
    assert bench.value("dlpool_worker_starts_total") == len(expected)


def test_a_worker_is_a_daemon_that_knows_its_parent_and_its_slots(bench: Pooled) -> None:
    bench.tend()
    one = Spawned.made[0]
    assert one.daemon and one.target is worker_module.main
    assert one.arguments[1] == os.getpid() and one.arguments[2]["slots"] == 2
    handle = bench.pool.workers[one.pid]
    assert not handle.is_quarantine and not handle.is_ready and bench.pool.capacity() == 0
    keys = {key.fd: key.data for key in bench.selector.get_map().values()}
    assert keys[handle.channel.fileno()] is handle
    keys[one.sentinel]()
    assert handle.has_exited


def test_each_worker_is_told_its_cpu_by_those_of_the_others(bench: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.pool.choose_cpu", lambda workers, taken: (workers, len(taken)))
    bench.tend()
    assert [process.arguments[2]["cpu"] for process in Spawned.made] == [(2, 0), (2, 1)]
    assert [handle.cpu for handle in bench.pool.workers.values()] == [one.arguments[2]["cpu"] for one in Spawned.made]


def test_the_workers_end_of_the_channel_is_the_workers_alone(bench: Pooled) -> None:
    bench.tend()
    for process in Spawned.made:
        assert process.arguments[0].fileno() == -1
        process.sock.close()
    handle = next(iter(bench.pool.workers.values()))
    assert list(handle.frames()) == [] and not handle.channel.send(PingFrame())


def test_capacity_counts_ordinary_workers_that_are_up_and_stay(bench: Pooled) -> None:
    workers = [bench.worker(2) for _ in range(5)]
    workers[1].handle.is_ready = False
    workers[2].handle.is_retiring = True
    workers[3].handle.kill_reason = "x"
    bench.worker(1, is_quarantine=True)
    assert bench.pool.capacity() == 4


@pytest.mark.parametrize("is_hello", [True, False])
def test_a_dead_worker_is_replaced(bench: Pooled, is_hello: bool) -> None:
    bench.tend()
    if is_hello:
        bench.up()
    first = next(iter(bench.pool.workers.values()))
    bench.end(first)
    bench.tend(HEALTHY_S)
    assert bench.died == [(first.pid, "killed by SIGKILL")]
    assert first.pid not in bench.pool.workers and len(bench.pool.workers) == 2
    assert sorted(handle.slots for handle in bench.pool.workers.values()) == [1, 2]
    registered = [key.data for key in bench.selector.get_map().values()]
    assert len(registered) == 4 and first not in registered
    assert first.channel.fileno() == -1
    (line,) = bench.lines.named("worker_died")
    assert line.level == "warning" and line.fields["exit_reason"] == "killed by SIGKILL" and line.fields["running"] == 0
    assert bench.value("dlpool_worker_exits_total", reason="died") == 1


def test_workers_that_die_young_are_replaced_later_and_later(bench: Pooled) -> None:
    bench.tend()
    bench.up()
    waits = []
    for _ in range(4):
        bench.end(next(iter(bench.pool.workers.values())))
        bench.tend()
        waits.append(0.0)
        while len(bench.pool.workers) < 2:
            bench.tend(0.1)
            waits[-1] = round(waits[-1] + 0.1, 1)
        bench.up()
    assert waits == [0.0, 0.2, 0.4, 0.8]


def test_a_worker_that_was_retired_and_ends_is_no_failure(bench: Pooled) -> None:
    bench.tend()
    for handle in bench.up():
        bench.pool._retire(handle, "x")
    bench.tend()
    assert len(bench.pool.workers) == 4  # replaced at once
    for handle in list(bench.pool.workers.values())[:2]:
        bench.end(handle, 0)
    bench.tend()
    assert bench.pool._respawn == RespawnBackoff()
    assert [(line.level, line.fields["running"]) for line in bench.lines.named("worker_exited")] == [("info", 0)] * 2
    assert bench.value("dlpool_worker_exits_total", reason="exited") == 2


def test_a_retired_worker_that_never_came_up_is_a_failure(bench: Pooled) -> None:
    bench.tend()
    handle = next(iter(bench.pool.workers.values()))
    handle.is_retiring = True
    bench.end(handle, 0)
    bench.tend()
    assert bench.pool._respawn.failures == 1


@pytest.mark.parametrize("has_come_up", [True, False])
def test_a_service_whose_workers_never_come_up_fails(bench: Pooled, has_come_up: bool) -> None:
    bench.tend()
    if has_come_up:
        bench.up()
    for number in range(4):
        handle = next(iter(bench.pool.workers.values()))
        bench.end(handle, 3)
        stacks_file(bench.folder, handle.pid).write_text("the cause\nmore\n")
        if number == 2 and not has_come_up:
            with pytest.raises(WorkerStartFailed, match=r"exit code 3: the cause$"):
                bench.tend(1.0)
            return
        bench.tend(1.0)
        bench.tend(1.0)
    assert has_come_up


@pytest.mark.parametrize("has_come_up", [True, False])
def test_a_start_that_is_refused_is_tried_again(
    bench: Pooled, monkeypatch: pytest.MonkeyPatch, has_come_up: bool
) -> None:
    bench.tend()
    if has_come_up:
        bench.up()
        Spawned.refused = OSError(11, "Resource temporarily unavailable")
        for handle in list(bench.pool.workers.values()):
            bench.end(handle)
    else:
        bench.pool.workers.clear()
        Spawned.refused = OSError(11, "Resource temporarily unavailable")
    pairs: list[tuple[FrameChannel, socket.socket]] = []
    pair = FrameChannel.pair

    def noted() -> tuple[FrameChannel, socket.socket]:
        pairs.append(pair())
        return pairs[-1]

    monkeypatch.setattr(FrameChannel, "pair", noted)
    for number in range(5):
        bench.lines.kept.clear()
        if number == 2 and not has_come_up:
            with pytest.raises(WorkerStartFailed, match="Resource temporarily unavailable"):
                bench.tend(RESPAWN_MAX_S)
            return
        bench.tend(RESPAWN_MAX_S)
        assert len(bench.lines.named("worker_not_started")) == 1, "one line a try"
    assert len(pairs) == 5 and all(mine.fileno() == theirs.fileno() == -1 for mine, theirs in pairs)
    Spawned.refused = None
    bench.tend(RESPAWN_MAX_S)
    assert len(bench.pool.workers) == 2


def test_a_refused_start_beside_a_worker_that_is_yet_to_come_up_is_no_end(bench: Pooled) -> None:
    bench.tend()
    bench.pool.workers.popitem()
    Spawned.refused = OSError(11, "Resource temporarily unavailable")
    for _ in range(5):
        bench.tend(RESPAWN_MAX_S / 2)
        for handle in bench.pool.workers.values():
            handle.last_heard_at = bench.clock.now
    assert len(bench.pool.workers) == 1


# --- jobs that must run alone ---


def test_quarantined_jobs_get_workers_of_their_own(bench: Pooled) -> None:
    bench.tend(quarantined=5)
    alone = [handle for handle in bench.pool.workers.values() if handle.is_quarantine]
    assert [handle.slots for handle in alone] == [1, 1] and len(bench.pool.workers) == 4
    bench.tend(quarantined=5)
    assert len(bench.pool.workers) == 4
    bench.tend(quarantined=0)
    assert not any(handle.is_retiring for handle in alone), "they are not up yet"
    bench.up()
    alone[1].jobs["a.1"] = 0.0
    bench.tend(quarantined=1)
    assert not any(handle.is_retiring for handle in alone)
    bench.tend(quarantined=0)
    bench.tend(quarantined=0)
    assert [handle.is_retiring for handle in alone] == [True, False]
    assert [line.fields["reason"] for line in bench.lines.named("worker_retired")] == ["no quarantined job is left"]


def test_a_quarantine_worker_replaces_no_ordinary_one(bench: Pooled) -> None:
    bench.worker(2, is_quarantine=True)
    bench.worker(1, is_quarantine=True)
    bench.tend(quarantined=2)
    assert sorted((handle.slots, handle.is_quarantine) for handle in bench.pool.workers.values()) == [
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    ]


def test_a_worker_with_another_number_of_slots_does_not_count(bench: Pooled) -> None:
    bench.worker(7)
    bench.tend()
    assert sorted(handle.slots for handle in bench.pool.workers.values()) == [1, 2, 7]


@pytest.mark.parametrize(
    ("waiting", "seats", "expected"),
    [
        ("ab", [(1, 1, 0, False), (2, 2, 0, False)], [("a", 2), ("b", 1)]),
        ("abc", [(1, 1, 0, False), (2, 1, 0, False)], [("a", 1), ("b", 2)]),
        ("aB", [(1, 0, 0, False), (2, 1, 0, True)], [("B", 2)]),
        ("AB", [(2, 5, 0, True), (3, 5, 1, True)], [("A", 2)]),
        ("a", [(1, -1, 5, False)], []),
    ],
)
def test_jobs_are_assigned_to_the_freest_worker_and_quarantined_ones_alone(
    waiting: str, seats: Any, expected: Any
) -> None:
    jobs = [WaitingJob(name, name.isupper()) for name in waiting]
    assert assign(jobs, [WorkerSlots(*seat) for seat in seats]) == expected


@pytest.mark.parametrize(
    ("slots", "workers", "expected"), [(5, 2, [3, 2]), (2, 5, [1, 1]), (6, 3, [2, 2, 2]), (7, 3, [3, 2, 2])]
)
def test_slots_are_dealt_evenly(slots: int, workers: int, expected: list[int]) -> None:
    assert divide_slots(slots, workers) == expected


def test_the_wait_for_the_next_start_doubles_to_a_bound_and_ends_with_a_worker_that_lived() -> None:
    respawn, waits = RespawnBackoff(), []
    for _ in range(10):
        respawn = respawn.after_death(HEALTHY_S - 0.1, 100.0)
        waits.append(round(respawn.not_before - 100.0, 3))
    assert waits == [0.0, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0] and respawn.failures == 10
    assert respawn.after_death(HEALTHY_S, 100.0) == RespawnBackoff()


# --- what they are told ---


def test_workers_are_pinged_and_shown_once_a_second(bench: Pooled) -> None:
    workers = [bench.worker(2), bench.worker(1)]
    heard = []
    for seconds in (0.0, 0.5, 0.5, 0.9, 0.1):
        bench.tend(seconds)
        heard.append([len([frame for frame in one.heard() if frame == PingFrame()]) for one in workers])
    assert heard == [[1, 1], [0, 0], [1, 1], [0, 0], [1, 1]]
    assert [one["pid"] for one in bench.pool.summaries] == [one.handle.pid for one in workers]
    assert bench.pool.summaries[0] == {
        "pid": workers[0].handle.pid,
        "busy": 0,
        "slots": 2,
        "memory": 0,
        "state": "ready",
    }


def test_not_more_workers_are_shown_than_fit(make: Callable[..., Pooled]) -> None:
    bench = make(workers=MAX_SUMMARIES + 1, max_concurrent_downloads=MAX_SUMMARIES + 1)
    bench.tend()
    assert len(bench.pool.summaries) == MAX_SUMMARIES


def test_frames_wait_in_order_for_a_worker_that_does_not_read(bench: Pooled) -> None:
    worker = bench.worker()
    frames = [CancelFrame(str(number), "x" * 30_000) for number in range(40)]
    for frame in frames:
        worker.handle.send(frame)
    heard = worker.heard()
    assert 0 < len(heard) < len(frames)
    while len(heard) < len(frames):
        for handle in bench.pool.workers.values():
            handle.flush()
        more = worker.heard()
        assert more
        heard += more
    assert heard == frames
    worker.handle.flush()
    assert worker.heard() == []


def test_a_turn_sends_what_could_not_be_sent_before(bench: Pooled) -> None:
    worker = bench.worker(2)
    bench.worker(1)
    frames = [CancelFrame(str(number), "x" * 30_000) for number in range(40)]
    for frame in frames:
        worker.handle.send(frame)
    heard = worker.heard()
    bench.pool._pinged_at = bench.pool._shared_at = bench.clock.now
    bench.tend()
    assert worker.heard()[:1] == [frames[len(heard)]]


def test_a_frame_that_is_too_large_is_refused(bench: Pooled) -> None:
    worker = bench.worker()
    with pytest.raises(InternalError):
        worker.handle.send(CancelFrame("a", "x" * 70_000))
    assert worker.heard() == []


@pytest.mark.parametrize(("limit", "taken"), [(None, 5), (3, 3), (1, 1)])
def test_a_worker_is_replaced_after_its_share_of_jobs(
    make: Callable[..., Pooled], limit: int | None, taken: int
) -> None:
    bench = make(max_jobs_per_worker=limit)
    worker = bench.worker(2)
    assert bench.pool.worker_slots() == [WorkerSlots(worker.handle.pid, min(2, limit or 2), 0, False)]
    for number in range(taken):
        assert not worker.handle.is_retiring, number
        worker.handle.assign(f"{number}.1", 0.0)
        bench.pool.retire_after_limit(worker.handle)
    assert worker.handle.is_retiring == (limit is not None)
    assert worker.heard() == ([RetireFrame()] if limit is not None else [])
    reasons = [line.fields["reason"] for line in bench.lines.named("worker_retired")]
    assert reasons == ([f"it has run {taken} jobs"] if limit is not None else [])


def test_a_seat_has_no_more_places_than_jobs_that_a_worker_may_yet_take(make: Callable[..., Pooled]) -> None:
    bench = make(max_jobs_per_worker=4)
    worker = bench.worker(3)
    worker.handle.assigned_count = 2
    worker.handle.jobs = dict.fromkeys("ab", bench.clock.now)
    assert bench.pool.worker_slots() == [WorkerSlots(worker.handle.pid, 1, 2, False)]
    worker.handle.remove("a", bench.clock.now)  # a short run: jobs may wait for its slots
    worker.handle.assigned_count = 1
    assert bench.pool.worker_slots() == [WorkerSlots(worker.handle.pid, 2, 1, False, 1)]


@pytest.mark.parametrize("field", ["is_ready", "is_retiring", "kill_reason"])
def test_a_worker_that_does_not_stay_has_no_free_slots(bench: Pooled, field: str) -> None:
    worker = bench.worker()
    assert worker.handle.is_accepting and worker.handle.free_slots == 2
    setattr(worker.handle, field, {"is_ready": False, "is_retiring": True, "kill_reason": "x"}[field])
    assert not worker.handle.is_accepting and worker.handle.free_slots == 0


# --- their share of the rate ---


def test_the_nodes_rate_follows_the_jobs_once_a_second(make: Callable[..., Pooled]) -> None:
    bench = make(node_rate=1000)
    one, other = bench.worker(2), bench.worker(1)

    def rates() -> list[int | None]:
        return [
            next((frame.rate for frame in reversed(worker.heard()) if isinstance(frame, RateFrame)), -1)
            for worker in (one, other)
        ]

    bench.tend()
    assert rates() == [500, 500]
    one.handle.jobs["a"] = 0.0
    bench.tend(0.5)
    assert rates() == [-1, -1]
    bench.tend(0.5)
    assert rates() == [950, 50]
    bench.tend(1.0)
    assert rates() == [-1, -1], "said once"
    other.handle.assigned_count += 1  # it came and went within the second
    bench.tend(1.0)
    assert rates() == [500, 500]
    bench.tend(1.0)
    assert rates() == [950, 50]
    new = bench.worker(3)
    bench.tend(0.1)
    assert [frame for frame in new.heard() if isinstance(frame, RateFrame)] == [RateFrame(33)]
    bench.pool.settings = SupervisorSettings(node_rate=None)
    bench.tend(1.0)
    assert rates() == [None, None]
    bench.tend(1.0)
    assert rates() == [-1, -1]


@pytest.mark.parametrize(
    ("jobs", "taken", "demand"), [(0, 0, 0), (2, 0, 2), (0, 1, 1), (0, 9, 2), (1, 2, 2), (2, 1, 2)]
)
def test_what_a_worker_has_or_had_in_the_last_second_is_its_demand(
    bench: Pooled, jobs: int, taken: int, demand: int
) -> None:
    handle = bench.worker(2).handle
    handle.assigned_count = 5
    handle.demand()
    handle.jobs, handle.assigned_count = {str(number): 0.0 for number in range(jobs)}, 5 + taken
    assert handle.demand() == demand and handle.demand() == jobs


# --- silence ---


def test_a_silent_worker_dumps_its_stacks_and_is_killed_a_second_later(bench: Pooled) -> None:
    worker = bench.worker()
    pid = worker.handle.pid
    bench.worker(1)
    bench.tend(LIMIT_S)
    assert bench.signals == [] and bench.lines.named("worker_hung") == []
    for handle in bench.pool.workers.values():
        handle.last_heard_at += 0 if handle.pid == pid else 100
    bench.tend(0.56)
    assert bench.signals == [(pid, signal.SIGABRT), (pid, signal.SIGCONT)]
    (line,) = bench.lines.named("worker_hung")
    assert line.level == "warning" and line.fields == {"worker_pid": pid, "silent_s": 30.6}
    bench.tend(0.9)
    assert len(bench.signals) == 2
    bench.tend(0.2)
    assert bench.signals[2:] == [(pid, signal.SIGKILL)]
    assert worker.handle.kill_reason == f"it was silent for {LIMIT_S:g} s"
    bench.end(worker.handle)
    bench.tend()
    assert bench.died == [(pid, f"it was silent for {LIMIT_S:g} s (killed by SIGKILL)")]
    assert bench.value("dlpool_worker_exits_total", reason="killed") == 1


def test_a_frame_is_a_sign_of_life(bench: Pooled) -> None:
    worker = bench.worker()
    bench.clock.now += LIMIT_S
    worker.say(StatusFrame({}, {}))
    list(worker.handle.frames())
    assert worker.handle.last_heard_at == bench.clock.now


@pytest.mark.parametrize(("seconds", "is_hung"), [(FROZEN_S, True), (FROZEN_S + 0.5, False)])
def test_a_supervisor_that_was_suspended_aborts_no_worker(bench: Pooled, seconds: float, is_hung: bool) -> None:
    worker = bench.worker()
    worker.handle.last_heard_at = bench.clock.now - LIMIT_S
    bench.clock.now += seconds
    bench.tend()
    assert (bench.signals != []) == is_hung
    assert worker.handle.last_heard_at == bench.clock.now - (0 if not is_hung else LIMIT_S + seconds)


# --- memory ---


@pytest.mark.parametrize(
    ("size", "taken", "settings", "what"),
    [
        (5 * MIB, 1, {}, ""),
        (5 * MIB + 1, 1, {}, "retired"),
        (5 * MIB + 1, 0, {}, ""),
        (9 * MIB, 1, {}, "retired"),
        (9 * MIB + 1, 0, {}, "killed"),
        (99 * MIB, 1, {"worker_memory_soft": None, "worker_memory_hard": None}, ""),
        (99 * MIB, 1, {"worker_memory_hard": None}, "retired"),
        (99 * MIB, 1, {"worker_memory_soft": None}, "killed"),
    ],
)
def test_a_worker_that_grows_is_retired_and_one_that_grows_more_is_killed(
    make: Callable[..., Pooled], monkeypatch: pytest.MonkeyPatch, size: int, taken: int, settings: Any, what: str
) -> None:
    bench = make(**{"worker_memory_soft": 5 * MIB, "worker_memory_hard": 9 * MIB, **settings})
    worker = bench.worker()
    worker.handle.assigned_count = taken
    monkeypatch.setattr(WorkerHandle, "measure_memory", lambda handle: size if handle is worker.handle else 0)
    bench.tend(MEMORY_S)
    assert worker.handle.resident_bytes == size
    bench.tend(MEMORY_S)
    assert bench.pool.over_memory == (1 if what == "retired" else 1 if what else 0)
    assert worker.handle.is_retiring == (what == "retired")
    assert bench.signals == ([(worker.handle.pid, signal.SIGKILL)] if what == "killed" else [])
    if what == "killed":
        assert worker.handle.kill_reason == f"it used {size} bytes of memory, more than worker_memory_hard"
        assert worker.handle.resident_bytes == 0, "it is gone"
    if what == "retired":
        (line,) = bench.lines.named("worker_retired")
        assert line.fields["reason"] == f"it used {size} bytes of memory, more than worker_memory_soft"
        assert RetireFrame() in worker.heard()


def test_workers_are_weighed_now_and_then(bench: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = bench.worker()
    weighed: list[int] = []

    def memory(handle: WorkerHandle) -> int:
        weighed.append(handle.pid)
        return 1

    monkeypatch.setattr(WorkerHandle, "measure_memory", memory)
    counts = []
    for seconds in (0.0, MEMORY_S / 2, MEMORY_S / 2, MEMORY_S / 2, MEMORY_S / 2):
        bench.tend(seconds)
        counts.append(weighed.count(worker.handle.pid))
    assert counts == [1, 1, 2, 2, 3]


def test_the_memory_of_a_process_is_its_resident_one_and_of_none_nothing(bench: Pooled) -> None:
    handle = bench.worker().handle
    assert handle.measure_memory() == 0
    handle.pid = os.getpid()
    assert handle.measure_memory() > MIB


# --- what they received ---


def test_received_bytes_are_those_of_the_last_report(bench: Pooled) -> None:
    one, other = bench.worker(), bench.worker()
    one.say(StatusFrame({}, {"received": 5}), StatusFrame({}, {"received": 7}))
    bench.dispatcher.read_frames(one.handle)
    assert bench.pool.received() == {one.handle.pid: 7, other.handle.pid: 0}


# --- their end ---


def test_all_workers_are_told_to_end_and_their_last_words_are_heard(
    bench: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [bench.worker(), bench.worker(), bench.worker()]
    heard: list[Any] = []
    deadline = bench.clock.now + STOP_S

    def join(worker: Worker, code: int | None) -> Callable[[float | None], None]:
        def joined(timeout: float | None = None) -> None:
            if worker.handle.process.exitcode is not None:
                return
            heard.append((timeout, worker.heard(), list(bench.selector.get_map())))
            assert worker.channel.receive() is None, "the end of its socket"
            bench.clock.now += 4.0
            worker.say(EndedFrame("a.1", AttemptResult.RELEASED))
            worker.handle.process.exitcode = code  # type: ignore[misc]

        return joined

    for worker, code in zip(workers, (0, 0, None), strict=True):
        monkeypatch.setattr(worker.handle.process, "join", join(worker, code))
    words: list[tuple[int, list[Any]]] = []
    started = deadline - STOP_S
    bench.pool.stop(lambda handle, _how: words.append((handle.pid, list(handle.frames()))))
    assert [told for _, told, _ in heard[:3]] == [[RetireFrame()]] * 3
    assert [timeout for timeout, _, _ in heard[:3]] == [deadline - started, deadline - started - 4.0, 0.0]
    assert [pid for pid, _ in words] == [worker.handle.pid for worker in workers]
    assert all(said[0] == EndedFrame("a.1", AttemptResult.RELEASED) for _, said in words)
    assert bench.signals == [(workers[2].handle.pid, signal.SIGKILL)]
    assert bench.pool.workers == {} and list(bench.selector.get_map()) == []
    assert workers[2].handle.kill_reason == "it did not exit"


@pytest.mark.parametrize(
    ("code", "kill_reason", "how"),
    [
        (0, None, "exit code 0"),
        (None, None, "exit code 0"),
        (3, None, "exit code 3"),
        (-9, None, "killed by SIGKILL"),
        (-6, "why", "why (killed by SIGABRT)"),
        (0, "why", "why (exit code 0)"),
    ],
)
def test_how_a_worker_ended(bench: Pooled, code: int | None, kill_reason: str | None, how: str) -> None:
    handle = bench.worker().handle
    handle.process.exitcode = code  # type: ignore[misc]
    handle.kill_reason = kill_reason
    assert handle.describe_exit() == how


@pytest.mark.parametrize(
    ("code", "kill_reason", "event"), [(0, None, "worker_exited"), (0, "x", "worker_died"), (1, None, "worker_died")]
)
def test_only_an_end_in_order_is_no_warning(bench: Pooled, code: int, kill_reason: str | None, event: str) -> None:
    handle = bench.worker().handle
    handle.kill_reason = kill_reason
    handle.jobs["a.1"] = 0.0
    bench.end(handle, code)
    bench.tend()
    assert event in bench.lines.events and bench.lines.named(event)[0].fields["running"] == 1
    how = "exited" if event == "worker_exited" else "killed" if kill_reason else "died"
    assert bench.value("dlpool_worker_exits_total", reason=how) == 1


@pytest.mark.parametrize("is_ready", [True, False])
def test_the_stacks_of_a_dead_worker_go_into_the_log_and_its_file_goes(bench: Pooled, is_ready: bool) -> None:
    handle = bench.worker(is_ready=is_ready).handle
    path = stacks_file(bench.folder, handle.pid)
    path.write_text("first\n" + "x" * (MAX_STACKS + 10))
    bench.end(handle)
    bench.tend()
    (line,) = bench.lines.named("worker_died")
    assert line.fields["stacks"].startswith("first\nxx") and len(line.fields["stacks"]) == MAX_STACKS
    assert line.fields["exit_reason"] == "killed by SIGKILL" + ("" if is_ready else ": first")
    assert not path.exists()
    assert handle.take_stacks(bench.folder) == ""
    assert None in handle.process.joined  # type: ignore[attr-defined]


def test_a_first_reason_to_kill_a_worker_stays(bench: Pooled) -> None:
    handle = bench.worker().handle
    handle.kill("one")
    handle.kill("two")
    assert handle.kill_reason == "one"


def test_stacks_of_earlier_workers_are_removed(tmp_path: Path) -> None:
    for name in ("stacks-1", "stacks-2", "other"):
        (tmp_path / name).touch()
    (tmp_path / "stacks-0").mkdir()
    remove_old_stacks(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "stacks-0"]


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "starting"),
        ({"is_ready": True}, "ready"),
        ({"is_ready": True, "is_quarantine": True}, "quarantine"),
        ({"is_ready": True, "is_quarantine": True, "is_retiring": True}, "retiring"),
    ],
)
def test_a_worker_shows_what_it_is_there_for(bench: Pooled, fields: dict[str, Any], state: str) -> None:
    handle = bench.worker(is_ready=False).handle
    for name, value in fields.items():
        setattr(handle, name, value)
    assert handle.state == state == handle.as_json()["state"]


def test_a_worker_that_says_hello_is_up(bench: Pooled) -> None:
    bench.tend()
    handle = next(iter(bench.pool.workers.values()))
    channel = Spawned.made[0].sock
    channel.setblocking(True)
    assert FrameChannel(channel).send(HelloFrame(1))
    bench.dispatcher.read_frames(handle)
    assert handle.is_ready and bench.pool.capacity() == 2
    assert bench.lines.kept[-1] == ("info", "worker_started", {"worker_pid": handle.pid, "slots": 2})
