"""Jobs ahead: they wait in a worker for its slots, so that no slot waits for the supervisor between short jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dlpool import disk
from dlpool.jobs.keys import QueueKeys
from dlpool.service.inflight import InFlightPhase, InFlightTable
from dlpool.service.queue.messages import LeaseLost, Mailbox
from dlpool.service.scheduling import WaitingJob, WorkerSlots, assign
from dlpool.service.wire.frames import CancelFrame, EndedFrame, JobFrame, LostFrame, RecallFrame
from dlpool.service.wire.results import AttemptResult
from dlpool.service.worker_handle import AHEAD_PER_SLOT, RECALL_S, SHORT_S, WorkerHandle
from tests.bench import Bench, Worker
from tests.conftest import wait_until
from tests.fleet import Client, Supervisor
from tests.origin import File, Origin
from tests.redis_server import RedisServer
from tests.test_host_limits import Door
from tests.test_inflight import held as held_job

SHORT, LONG = SHORT_S / 2, SHORT_S * 2


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench(tmp_path)
    for module in ("assignment", "dispatcher", "pool"):
        monkeypatch.setattr(f"dlpool.service.{module}.time", bench.clock)
    return bench


def quick(bench: Bench, slots: int = 1) -> Worker:
    """A worker whose last run was short."""
    worker = bench.worker(slots)
    worker.handle.assign("before.1", bench.clock.now)
    worker.handle.remove("before.1", bench.clock.now)
    return worker


def released(name: str = "a") -> EndedFrame:
    return EndedFrame(f"{name}.1", AttemptResult.RELEASED, label="cancelled", message="why")


def phases(bench: Bench) -> dict[str, str]:
    return {one.lease.job_id: one.phase.value for one in bench.in_flight.all()}


# --- how many ---


@pytest.mark.parametrize(
    ("runs", "ahead"),
    [
        ([], 0),  # nothing is known yet
        ([SHORT], 2),
        ([LONG], 0),
        ([SHORT] * 9 + [10.0], 0),  # a long run weighs more than many short ones
        ([10.0] + [SHORT] * 30, 2),
    ],
)
def test_jobs_wait_only_in_workers_whose_last_runs_were_short(bench: Bench, runs: list[float], ahead: int) -> None:
    handle = bench.worker(2).handle
    for seconds in runs:
        handle.assign("x.1", bench.clock.now)
        assert handle.remove("x.1", bench.clock.now + seconds) is None
    assert handle.slots_ahead(bench.clock.now) == ahead * AHEAD_PER_SLOT


def test_no_job_waits_for_a_slot_whose_run_is_long(bench: Bench) -> None:
    handle = quick(bench, 3).handle
    handle.assign("a.1", bench.clock.now)
    handle.assign("b.1", bench.clock.now + LONG)
    assert handle.slots_ahead(bench.clock.now + SHORT) == 3 * AHEAD_PER_SLOT
    assert handle.slots_ahead(bench.clock.now + LONG + SHORT) == 2 * AHEAD_PER_SLOT


@pytest.mark.parametrize("field", ["is_ready", "is_retiring", "kill_reason", "is_quarantine"])
def test_no_job_waits_in_a_worker_that_does_not_stay(bench: Bench, field: str) -> None:
    handle = quick(bench).handle
    setattr(handle, field, field != "is_ready")
    assert handle.slots_ahead(bench.clock.now) == 0


def test_a_worker_begins_its_jobs_in_the_order_of_their_assignment(bench: Bench) -> None:
    handle: WorkerHandle = quick(bench, 2).handle
    assert [handle.assign(f"{name}.1", 1.0) for name in "abcd"] == [True, True, False, False]
    assert (handle.running, handle.free_slots, list(handle.ahead)) == (2, 0, ["c.1", "d.1"])
    assert handle.remove("d.1", 2.0) is None, "it was given back, and frees no slot"
    assert handle.remove("b.1", 2.0) == "c.1" and handle.jobs == {"a.1": 1.0, "c.1": 2.0}
    assert handle.remove("a.1", 2.0) is None and handle.free_slots == 1


def test_a_free_slot_comes_before_a_place_to_wait() -> None:
    jobs = [WaitingJob(name, is_quarantined=False) for name in "abcd"]
    workers = [WorkerSlots(1, 0, 2, False, 4), WorkerSlots(2, 1, 1, False, 1), WorkerSlots(3, 0, 9, False, 0)]
    assert assign(jobs, workers) == [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
    assert assign([WaitingJob("a", is_quarantined=True)], workers) == []


def test_jobs_ahead_are_claimed_when_half_of_the_last_ones_have_begun() -> None:
    table = InFlightTable()
    table.set_capacity(1)
    table.add(held_job("a"))
    table.set_ahead_limit(4)
    assert (table.free_slots(), table.free_ahead(), table.has_free_slot.is_set()) == (0, 4, True)
    for number, name in enumerate("bcd", 1):
        job = held_job(name)
        table.add(job)  # until a worker has it, it counts as busy
        assert (table.busy, table.free_ahead()) == (2, 4 - number)
        table.set_phase(job, InFlightPhase.AHEAD)
        assert (table.busy, table.free_ahead(), table.has_free_slot.is_set()) == (1, 4 - number, number < 2)
    table.set_capacity(0)
    assert (table.free_ahead(), table.has_free_slot.is_set()) == (0, False)


# --- in the supervisor ---


def fill(bench: Bench, *names: str) -> Worker:
    """A worker with one slot, where the first of the jobs runs and the others wait."""
    worker = quick(bench)
    for name in names:
        bench.held(name)
    bench.dispatcher.assign_waiting()
    assert [type(frame) for frame in worker.heard()] == [JobFrame] * len(names)
    return worker


def test_a_job_ahead_occupies_no_slot_and_begins_when_the_one_before_has_ended(bench: Bench) -> None:
    worker = fill(bench, "a", "b")
    assert phases(bench) == {"a": "running", "b": "ahead"} and bench.in_flight.busy == 1
    bench.clock.now += SHORT
    worker.say(EndedFrame("a.1", AttemptResult.SUCCEEDED, "/data/a", {"size": 3, "seconds": 0.5}))
    bench.dispatcher.read_frames(worker.handle)
    assert phases(bench) == {"a": "recording", "b": "running"} and bench.in_flight.busy == 1
    begun = bench.in_flight.get("b.1")
    assert begun is not None and begun.assigned_at == bench.clock.now


def test_a_job_that_waits_too_long_is_recalled_once_and_returns_to_the_queue(bench: Bench) -> None:
    worker = fill(bench, "a", "b")
    bench.clock.now += RECALL_S / 2
    bench.dispatcher.recall_overdue()
    assert worker.heard() == []
    bench.clock.now += RECALL_S / 2
    bench.dispatcher.recall_overdue()
    bench.dispatcher.recall_overdue()
    assert worker.heard() == [RecallFrame("b.1")]
    worker.say(released("b"))
    bench.dispatcher.read_frames(worker.handle)
    assert (bench.last().lease.job_id, bench.last().disposition, bench.last().delay_s) == ("b", "release", 0.0)
    assert list(worker.handle.jobs) == ["a.1"] and worker.handle.ahead == {}


def test_a_job_for_which_no_worker_has_room_returns_to_the_queue(bench: Bench) -> None:
    bench.in_flight.set_capacity(1)
    for name in "abc":
        bench.held(name)
    bench.dispatcher.recall_overdue()
    assert bench.told.ended == []
    bench.clock.now += RECALL_S
    bench.dispatcher.recall_overdue()
    assert [(one.lease.job_id, one.disposition) for one in bench.told.ended] == [("c", "release"), ("b", "release")]


def test_a_drain_recalls_all_jobs_ahead(bench: Bench) -> None:
    worker = fill(bench, "a", "b")
    for _ in range(2):
        bench.dispatcher.release_waiting("the supervisor stops")
    assert worker.heard() == [RecallFrame("b.1")] and bench.told.ended == []


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_an_operator_stops_a_job_ahead(bench: Bench, action: str) -> None:
    worker = fill(bench, "a", "b")
    bench.dispatcher.request_stop("b.1", action)
    assert [type(frame) for frame in worker.heard()] == [CancelFrame]
    worker.say(released("b"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.last().disposition == {"cancel": "cancelled", "pause": "pause"}[action]


def test_a_job_ahead_whose_lease_is_lost_leaves_the_table(bench: Bench) -> None:
    worker = fill(bench, "a", "b")
    bench.dispatcher.fence_off("b.1")
    assert worker.heard() == [LostFrame("b.1")]
    worker.say(EndedFrame("b.1", AttemptResult.LOST, label="lost"))
    bench.dispatcher.read_frames(worker.handle)
    assert phases(bench) == {"a": "running"} and bench.told.ended == []


def test_the_death_of_a_worker_does_not_count_against_its_jobs_ahead(bench: Bench) -> None:
    worker = fill(bench, "a", "b", "c")
    worker.say(EndedFrame("a.1", AttemptResult.SUCCEEDED, "/data/a", {"size": 3, "seconds": 0.5}))
    bench.dispatcher.reap(worker.handle, "killed by SIGKILL")
    found = {one.lease.job_id: one.disposition for one in bench.told.ended}
    assert found == {"a": "success", "b": "crash", "c": "release"}
    assert worker.handle.jobs == worker.handle.ahead == {}


# --- a real service ---


def test_a_job_behind_a_long_one_is_left_to_other_nodes(tmp_path: Path, redis_server: RedisServer) -> None:
    """The origin keeps one request waiting, after many short jobs; the job behind it must not wait for that."""
    client, keys = Client(redis_server.client()), QueueKeys()
    one: dict[str, dict[str, Any]] = {"supervisor": {"max_concurrent_downloads": 1, "workers": 1}}
    with Door() as door, Origin(door) as slow, Origin(File(b"x" * 1000)) as fast:
        short = [f"{fast.url}/{number}" for number in range(30)]
        with Supervisor(tmp_path / "one", redis_server.url, one) as first:
            for number, url in enumerate(short):
                client.push(url, f"short{number}")
            client.push(f"{slow.url}/long", "long")
            behind = [f"{fast.url}/behind{number}" for number in range(3)]
            for number, url in enumerate(behind):
                client.push(url, f"behind{number}")
            client.wait_for(*short)
            wait_until(lambda: bool(slow.requests) and len(first.events("job_started")) >= len(short), 30)
            with Supervisor(tmp_path / "two", redis_server.url, one):
                client.wait_for(*behind)
            door.open.set()
            client.wait_for(f"{slow.url}/long")
        assert redis_server.client().zcard(keys.done) == len(short) + len(behind) + 1


# --- what a job costs ---


def test_many_messages_wake_the_supervisor_once(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    real = os.eventfd_write

    def write(descriptor: int, value: int) -> None:
        writes.append(value)
        real(descriptor, value)

    monkeypatch.setattr("os.eventfd_write", write)
    mailbox = Mailbox()
    for _ in range(2):
        for number in range(64):
            mailbox.post(LeaseLost(f"{number}.1"))
        assert len(list(mailbox.read())) == 64 and list(mailbox.read()) == []
    assert len(writes) == 2


def test_jobs_that_start_together_cost_one_write_of_the_journal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    real = disk.write_all

    def write(descriptor: int, data: bytes) -> None:
        writes.append(data)
        real(descriptor, data)

    monkeypatch.setattr("dlpool.disk.write_all", write)
    fill(bench, "a", "b", "c")
    assert [data.count(b"\n") for data in writes] == [3] and set(bench.journal.entries()) == set("abc")
    bench.dispatcher.assign_waiting()
    assert len(writes) == 1
