"""Test the threads that talk to Redis, one turn at a time, with a fake Redis: their calls, and how they handle each
answer and failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.errors import LocalFault, QueueAway, QueueError, QueueRefused, QueueUnusable
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.connection import BLOCK_S
from dlpool.jobs.history import SAMPLE_S
from dlpool.jobs.host_slots import HostLimit, SlotReply
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.outbox import Delivery
from dlpool.jobs.server_check import ServerWarning
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import ClaimResult, FinishRequest, HeartbeatResult, JobLease, RecoveryResult
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from dlpool.service.journal import CleanupJournal
from dlpool.service.queue import claiming as claiming_module
from dlpool.service.queue import heartbeat as heartbeat_module
from dlpool.service.queue import recording
from dlpool.service.queue import redis_state as redis_state_module
from dlpool.service.queue.claiming import JobClaimer
from dlpool.service.queue.heartbeat import Heartbeat
from dlpool.service.queue.messages import (
    FenceChecked,
    HostHeld,
    HostSlotAnswered,
    HostSlotRequest,
    JobsClaimed,
    JobsTakenBack,
    LeaseLost,
    ResultRecorded,
    StaleFilesFound,
    StopRequested,
    WaitingHosts,
)
from dlpool.service.queue.recording import BATCH, ResultRecorder, finish_jobs
from dlpool.service.queue.redis_state import Backoff, CallSpacing, QueueContext, RedisState
from dlpool.service.queue.spool import Spool
from dlpool.service.queue.sweeping import BATCH as SWEEP_BATCH
from dlpool.service.queue.sweeping import StaleFileSweeper
from dlpool.service.wire.frames import CleanupEntry
from tests.bench import job_of
from tests.fakes import Clock, Lines

RECORD = ClientRecord("key", b"value", "field")
LEASE_S, GRACE_S = 30.0, 15.0


class Redis:
    """A fake Redis that records each call and returns the entry of ``answers`` with its name.

    Of a list it returns and removes the first item; an exception is raised.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.answers: dict[str, Any] = {}
        self.keys = QueueKeys()
        self.outbox: Any = None
        self.client = self
        self.connection_pool = SimpleNamespace(connection_kwargs={})

    def __getattr__(self, name: str) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            self.calls.append((name, *given, *options.items()))
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer(*given, **options) if callable(answer) else answer

        return call

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]


class Shared:
    """What the threads share."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.redis, self.blocking = Redis(), Redis()
        self.clock, self.lines = Clock(1000.0), Lines()
        for module in (heartbeat_module, redis_state_module):
            patch.setattr(module, "time", self.clock)
        self.changes: list[str | None] = []
        self.failed: list[str] = []
        log: Any = self.lines
        self.redis_state = RedisState(log, lambda: self.changes.append(self.redis_state.error), self.failed.append)
        self.signs: list[float] = []
        patch.setattr(self.redis_state.liveness, "mark_alive", lambda: self.signs.append(self.clock.now))
        self.in_flight = InFlightTable()
        self.in_flight.set_capacity(3)
        self.spool, self.journal = Spool(folder), CleanupJournal(folder)
        self.posted: list[Any] = []
        self.slots: list[tuple[Any, ...]] = []
        self.log = log

    def context(self, order: str = "fifo", grace_s: float = GRACE_S) -> QueueContext:
        redis: Any = self.redis
        return QueueContext(
            redis, "s", self.in_flight, self.redis_state, self.log, LEASE_S, grace_s, lambda: order, self.posted.append
        )

    def claimer(self, order: str = "fifo") -> JobClaimer:
        blocking: Any = self.blocking
        return JobClaimer(self.context(order), blocking, 20)

    def recorder(self) -> ResultRecorder:
        made = ResultRecorder(self.context(), self.spool)
        made._slots = Slots(self.slots)  # type: ignore[assignment]
        return made

    def heartbeat(self, *, grace_s: float = GRACE_S, earlier: tuple[str, ...] = ()) -> Heartbeat:
        blocking: Any = self.blocking
        self.claimed: list[str] = []
        claimer: Any = SimpleNamespace(
            wake=lambda: self.claimed.append("wake"), request_reconcile=lambda: self.claimed.append("reconcile")
        )
        self.swept: list[float] = []
        sweeper: Any = SimpleNamespace(sweep=lambda: self.swept.append(self.clock.now))
        made = Heartbeat(
            self.context(grace_s=grace_s),
            blocking,
            self.spool,
            claimer,
            sweeper,
            info=lambda: {"i": 1},
            earlier=earlier,
        )
        made._slots = Slots(self.slots)  # type: ignore[assignment]
        made._history = SimpleNamespace(record_sample=lambda: self.redis.sample_())  # type: ignore[assignment]
        self.redis.answers |= {
            "heartbeat": HeartbeatResult(0, ()),
            "recover": RecoveryResult(0, ()),
            "requeue_jobs_of": (),
            "sample_": True,
        }
        return made

    def hold(self, name: str = "a", **fields: Any) -> InFlightJob:
        held = InFlightJob(job_of(name), 0.0)
        for field, value in fields.items():
            setattr(held, field, value)
        assert self.in_flight.add(held)
        return held


class Slots:
    """Fake slots of hosts that record each call."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls = calls

    def acquire(self, limit: HostLimit, job_id: str, *, lease_s: float, is_start_reserved: bool) -> SlotReply:
        self.calls.append(("acquire", limit.host, job_id, lease_s, is_start_reserved))
        return SlotReply(0)

    def release(self, host: str, job_id: str) -> None:
        self.calls.append(("release", host, job_id))

    def renew(self, held: Any, *, lease_s: float) -> None:
        self.calls.append(("renew", list(held), lease_s))


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shared:
    return Shared(tmp_path, monkeypatch)


def away() -> QueueAway:
    return QueueAway("away")


# --- whether Redis is there ---


def test_an_absence_is_told_once_and_so_is_its_end(shared: Shared) -> None:
    redis_state = shared.redis_state
    assert redis_state.error is None and not redis_state.registered.is_set()
    redis_state.report_heartbeat()
    assert redis_state.registered.is_set() and shared.lines.kept == [] and shared.changes == []
    for error in (QueueAway("one"), QueueRefused("two"), QueueError("three")):
        redis_state.report_failure(error)
        assert not redis_state.registered.is_set() and redis_state.error == str(error)
    assert shared.failed == ["unavailable", "refused", "other"] and shared.changes == ["one"]
    assert [(line.level, line.event, str(line.fields["error"])) for line in shared.lines.kept] == [
        ("warning", "redis_unavailable", "one")
    ]
    redis_state.report_heartbeat()
    assert redis_state.error is None and redis_state.registered.is_set() and shared.changes == ["one", None]
    assert shared.lines.kept[1:] == [("info", "redis_available", {})]


def test_a_thread_signs_when_it_goes_round(shared: Shared) -> None:
    assert shared.redis_state.keep_running() and len(shared.signs) == 1
    shared.redis_state.stopping.set()
    assert not shared.redis_state.keep_running() and len(shared.signs) == 2


def test_waits_between_tries_double_to_a_bound_and_begin_again(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    stopping: Any = SimpleNamespace(wait=waits.append)
    backoff = Backoff(stopping, 0.5)
    for _ in range(4):
        backoff.wait()
    backoff.reset()
    backoff.wait()
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.1]


def test_calls_are_kept_apart_and_the_first_is_not_late(shared: Shared) -> None:
    pace, times = CallSpacing(2.0), []
    for seconds in (0.0, 0.5, 2.0, 1.5):
        shared.clock.now += seconds
        pace.wait()
        times.append(shared.clock.now - 1000.0)
    assert times == [0.0, 2.0, 4.0, 6.0]


# --- claiming_module ---


def claim(shared: Shared, *jobs: Any, due_s: float | None = None, **fields: Any) -> ClaimResult:
    made = ClaimResult(jobs, due_s, **fields)
    shared.redis.answers["claim"] = [made]
    return made


def test_jobs_are_claimed_for_free_slots_and_handed_over(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claiming_module, "lease_clock", lambda: 7.0)
    shared.hold()
    claimer = shared.claimer()
    claim(shared, job_of("b"))
    claimer._turn()
    assert shared.redis.called("claim") == [
        ("s", [JobLease("a", 1)], 2, ("lease_s", LEASE_S), ("order", "fifo"), ("max_throttled", 20), ("shares", None))
    ]
    assert shared.posted == [JobsClaimed((job_of("b"),), 7.0 + LEASE_S)]
    assert not claimer._may_claim.is_set() and not claimer._must_reconcile.is_set()
    claimer.resume()
    assert claimer._may_claim.is_set()
    claim(shared, job_of("c"))
    claimer._turn()
    assert shared.redis.called("claim")[1][1] is None, "only new ones"
    claimer.request_reconcile()
    claimer.stop()
    claim(shared, job_of("c"))
    claimer._turn()
    assert shared.redis.called("claim")[2][1:3] == ([JobLease("a", 1)], 0), "stopped: only what is ours"
    assert shared.blocking.calls == []


def test_jobs_of_other_hosts_are_not_looked_for_again_within_a_second_where_none_was_found(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dlpool.service.queue.claiming.time.monotonic", lambda: now[0])
    shared.in_flight.host_share = 0.5
    claimer = shared.claimer()
    parts = []
    for at, is_alone in ((100.0, False), (100.1, True), (100.2, False), (101.0, False), (101.2, False)):
        now[0] = at
        claim(shared, job_of("b"), is_share_exceeded=is_alone, skipped=500 if is_alone else 0)
        claimer._turn()
        parts.append(dict(shared.redis.called("claim")[-1][3:])["shares"] is not None)
    assert parts == [True, True, False, False, True]


def test_no_more_jobs_are_claimed_ahead_for_a_while_where_too_few_were_found(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a claim has no free slot to fill, so it neither waits for the intake list nor delays the next claim."""
    now = [100.0]
    monkeypatch.setattr("dlpool.service.queue.claiming.time.monotonic", lambda: now[0])
    shared.in_flight.host_share = 0.5
    for name in "abc":
        shared.hold(name)
    claimer = shared.claimer()
    claimer._must_reconcile.clear()
    for skipped, pause_s in ((0, claiming_module.AHEAD_RETRY_S), (500, claiming_module.SHARE_RETRY_S)):
        shared.in_flight.set_ahead_limit(4)
        claim(shared, job_of("d"), skipped=skipped)
        claimer._turn()
        given = shared.redis.called("claim")[-1]
        assert given[2] == 4 and dict(given[3:])["shares"].ahead == 4
        assert not shared.in_flight.has_free_slot.is_set() and shared.blocking.calls == []
        now[0] += pause_s / 2
        shared.in_flight.set_ahead_limit(4)
        assert not claimer.finds_jobs_ahead and claimer._wanted_jobs() == (0, 0)
        now[0] += pause_s
        assert claimer.finds_jobs_ahead


def test_a_supervisor_that_redis_does_not_know_registers_first(shared: Shared) -> None:
    claimer = shared.claimer()
    shared.redis_state.report_heartbeat()
    shared.redis.answers["claim"] = [None]
    claimer._turn()
    assert claimer._must_reconcile.is_set() and not shared.redis_state.registered.is_set() and shared.posted == []


@pytest.mark.parametrize(("due_s", "wait_s"), [(None, BLOCK_S), (0.25, 0.251), (BLOCK_S, BLOCK_S), (99.0, BLOCK_S)])
@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_a_supervisor_with_room_waits_for_work(shared: Shared, due_s: float | None, wait_s: float, order: str) -> None:
    claimer = shared.claimer(order)
    claim(shared, due_s=due_s)
    ids: list[Any] = []
    shared.blocking.answers["client_id"] = 5
    shared.blocking.answers["execute_command"] = lambda *_: ids.append(claimer._waiting_id)
    claimer._turn()
    side = "LEFT" if order == "lifo" else "RIGHT"
    keys = shared.redis.keys
    assert shared.blocking.called("execute_command") == [("BLMOVE", keys.intake, keys.inbox("s"), side, "LEFT", wait_s)]
    assert ids == [5] and claimer._waiting_id is None


def test_without_room_nothing_waits(shared: Shared) -> None:
    shared.in_flight.set_capacity(0)
    claimer = shared.claimer()
    claim(shared)
    claimer._turn()
    assert shared.blocking.calls == []


@pytest.mark.parametrize("why", ["is_paused", "is_throttle_full", ""])
def test_a_queue_that_gives_no_jobs_is_not_waited_for_in_its_list(shared: Shared, why: str) -> None:
    claimer = shared.claimer()
    waits: list[float] = []
    looked: Any = SimpleNamespace(wait=waits.append, clear=lambda: waits.append(-1), set=lambda: waits.append(-2))
    claimer._woken = looked
    claim(shared, **({why: True} if why else {}))
    claimer._turn()
    assert waits == ([BLOCK_S, -1] if why else [])
    assert (shared.blocking.calls == []) == bool(why)


def test_a_look_ends_the_wait(shared: Shared) -> None:
    claimer = shared.claimer()
    claimer.wake()
    assert shared.redis.calls == [] and claimer._woken.is_set()
    claimer._waiting_id = 5
    claimer.wake()
    assert shared.redis.called("client_unblock") == [(5,)]


def test_a_wait_that_fails_is_not_ended_by_its_old_id(shared: Shared) -> None:
    claimer = shared.claimer()
    shared.blocking.answers |= {"client_id": 5, "execute_command": away()}
    with pytest.raises(QueueAway):
        claimer._wait_for_intake(1.0)
    assert claimer._waiting_id is None


def test_a_wait_at_a_list_of_another_type_says_that_redis_cannot_be_used(shared: Shared) -> None:
    claimer = shared.claimer()
    shared.blocking.answers |= {"client_id": 5, "execute_command": QueueError("refuses: WRONGTYPE")}
    shared.redis.answers["check_keys"] = QueueUnusable("its key is a string")
    with pytest.raises(QueueUnusable, match="its key is a string"):
        claimer._wait_for_intake(1.0)
    shared.redis.answers["check_keys"] = None
    with pytest.raises(QueueError, match="WRONGTYPE"):
        claimer._wait_for_intake(1.0)


def turns(shared: Shared, *steps: Any) -> Callable[..., Any]:
    """Return a step that runs one action in each turn, and stops the threads after the last."""
    left = list(steps)

    def step(*_: Any, **__: Any) -> Any:
        now = left.pop(0)
        if not left:
            shared.redis_state.stopping.set()
        if isinstance(now, Exception):
            raise now
        return now

    return step


def test_the_fetch_thread_asks_for_everything_after_an_error(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    claimer = shared.claimer()
    shared.redis_state.report_heartbeat()
    waits: list[str] = []

    def wait() -> None:
        waits.append("wait")
        shared.redis_state.registered.set()

    backoff: Any = SimpleNamespace(wait=wait, reset=lambda: waits.append("reset"))
    claimer._backoff = backoff
    claimer._must_reconcile.clear()
    monkeypatch.setattr(claimer, "_turn", turns(shared, None, away(), None))
    claimer.serve()
    assert waits == ["reset", "wait", "reset"] and claimer._must_reconcile.is_set()
    assert shared.redis_state.error == "away" and len(shared.signs) == 4


def test_the_fetch_thread_finds_out_who_waits_when_it_is_asked_and_there_is_no_room(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming_module, "PAUSE_S", 0.001)
    claimer = shared.claimer()
    shared.redis_state.report_heartbeat()
    shared.in_flight.set_capacity(0)
    shared.redis.answers["waiting_hosts"] = [{"h": 2}]
    claimer._must_reconcile.clear()
    claimer.request_waiting_hosts()
    monkeypatch.setattr(shared.in_flight.has_free_slot, "wait", turns(shared, False, False, False))
    claimer.serve()
    assert shared.posted == [WaitingHosts({"h": 2})] and shared.redis.called("claim") == []
    assert shared.redis.called("waiting_hosts") == [("s", ("order", "fifo"))], "asked once, told once"


@pytest.mark.parametrize("missing", ["registered", "handed_over", "room", "strays"])
def test_the_fetch_thread_claims_only_when_that_can_help(
    shared: Shared, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    claimer = shared.claimer()
    waited: list[str] = []

    def event(name: str, is_set: bool) -> Any:
        def wait(seconds: float) -> bool:
            waited.append(name)
            assert seconds == claiming_module.PAUSE_S
            if not is_set:
                shared.redis_state.stopping.set()
            return is_set

        return SimpleNamespace(wait=wait, is_set=lambda: is_set, set=lambda: None)

    claimer._must_reconcile = event("strays", missing == "strays")
    shared.redis_state.registered = event("registered", missing != "registered")
    claimer._may_claim = event("handed_over", missing != "handed_over")
    shared.in_flight.has_free_slot = event("room", missing != "room")
    monkeypatch.setattr(claimer, "_turn", turns(shared, None))
    claimer.serve()
    if missing == "strays":
        assert waited == ["registered", "handed_over"], "then room is not waited for"
    else:
        assert waited == ["registered", "handed_over", "room"][: len(waited)] and waited[-1] == missing
        claimer._turn()  # not taken yet


# --- recording ---


def end(name: str = "a", outcome: str = "success", **fields: Any) -> FinishRequest:
    return FinishRequest(JobLease(name, 1), Disposition(outcome), **fields)


def spooled(shared: Shared) -> list[str]:
    return sorted(path.name for path in shared.spool.folder.iterdir())


def test_questions_are_asked_before_ends_are_told(shared: Shared) -> None:
    recorder = shared.recorder()
    shared.redis.answers |= {
        "heartbeat": HeartbeatResult(0, ("OK", "LOST", "cancel")),
        "finish": lambda _sid, ends: ["OK"] * len(ends),
    }
    wish = HostSlotRequest(JobLease("w", 1), HostLimit("host", 1), is_start_reserved=True)
    ends = [end("a", host="host"), end("b", "throttle", host="host"), end("c")]
    recorder.record(ends[0])
    recorder.check_fence(JobLease("x", 1))
    recorder.record(ends[1])
    recorder.request_host_slot(wish)
    recorder.check_fence(JobLease("y", 1))
    recorder.hold_host(HostHeld("host", 9.0))
    recorder.check_fence(JobLease("z", 1))
    recorder.record(ends[2])
    shared.spool.store("s", ends[0])
    pending = recorder._take(wait=True)
    recorder._send(pending)
    assert pending == [] and len(shared.signs) == 1
    assert shared.slots == [("acquire", "host", "w", LEASE_S, True), ("release", "host", "a")]
    tickets = [(JobLease(name, 1), "") for name in "xyz"]
    assert shared.redis.calls == [
        ("hold_host", "host", 9.0),
        ("heartbeat", "s", tickets, ("lease_s", LEASE_S)),
        ("finish", "s", ends),
    ]
    assert shared.posted == [
        HostSlotAnswered("w.1", SlotReply(0)),
        FenceChecked("x.1", True),
        FenceChecked("y.1", False),
        FenceChecked("z.1", True),
        *(ResultRecorded(one, "OK") for one in ends),
    ]
    assert spooled(shared) == []


def test_many_are_told_in_portions_each_with_a_sign_of_life(shared: Shared) -> None:
    recorder = shared.recorder()
    shared.redis.answers["finish"] = lambda _sid, ends: ["OK"] * len(ends)
    ends = [end(str(number)) for number in range(BATCH + 1)]
    pending: list[Any] = list(ends)
    recorder._send(pending)
    assert [len(call[1]) for call in shared.redis.called("finish")] == [BATCH, 1] and len(shared.signs) == 2
    assert [one.request for one in shared.posted] == ends


def test_nothing_to_ask_asks_nothing(shared: Shared) -> None:
    recorder = shared.recorder()
    shared.redis.answers["finish"] = [["DUP"]]
    recorder._send([end()])
    assert shared.redis.names() == ["finish"]
    recorder._send([HostHeld("h", 1.0)])
    assert shared.redis.names() == ["finish", "hold_host"]


def test_a_taker_waits_for_the_first_only(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, paced = shared.recorder(), []
    recorder._spacing = SimpleNamespace(wait=lambda: paced.append(1))  # type: ignore[assignment]
    monkeypatch.setattr(recording, "WAIT_S", 0.001)
    assert recorder._take(wait=True) == [] == recorder._take(wait=False) and paced == []
    for name in "abc":
        recorder.record(end(name))
    assert [one.lease.job_id for one in recorder._take(wait=True) if isinstance(one, FinishRequest)] == ["a", "b", "c"]
    assert paced == [1]


def test_ends_that_cannot_be_told_are_spooled_and_told_later(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = shared.recorder()
    waits: list[str] = []
    recorder._backoff = SimpleNamespace(wait=lambda: waits.append("wait"), reset=lambda: waits.append("reset"))  # type: ignore[assignment]
    monkeypatch.setattr(recording, "WAIT_S", 0.001)
    recorder.record(end("a"))
    recorder.record(end("b", "retry"))
    recorder.check_fence(JobLease("x", 1))
    kept: list[list[str]] = []

    def beat(*_: Any, **__: Any) -> HeartbeatResult:
        kept.append(spooled(shared))
        if len(kept) == 1:
            raise QueueAway("one")
        if len(kept) == 2:
            raise QueueRefused("two")
        shared.redis_state.stopping.set()
        return HeartbeatResult(0, ("OK",))

    shared.redis.answers |= {"heartbeat": beat, "finish": lambda _sid, ends: ["OK"] * len(ends)}
    recorder.serve()
    assert kept == [[], ["a.1.json"], ["a.1.json"]] and spooled(shared) == []
    assert waits == ["wait", "wait", "reset"] and shared.failed == ["unavailable", "refused"]
    assert shared.posted == [
        FenceChecked("x.1", True),
        ResultRecorded(end("a"), "OK"),
        ResultRecorded(end("b", "retry"), "OK"),
    ]


def test_what_is_in_line_at_the_end_is_spooled(shared: Shared) -> None:
    recorder = shared.recorder()
    shared.redis_state.stopping.set()
    recorder.record(end("a"))
    recorder.check_fence(JobLease("x", 1))
    recorder.record(end("b"))
    recorder.serve()
    assert spooled(shared) == ["a.1.json", "b.1.json"] and shared.redis.calls == []
    assert len(shared.signs) == 3


def test_an_end_that_cannot_be_spooled_is_logged(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise LocalFault("full")

    monkeypatch.setattr(shared.spool, "store", refuse)
    shared.recorder()._spool_results([end(trace_id="t")])
    ((level, event, fields),) = shared.lines.kept
    assert (level, event, fields["job_id"], fields["trace_id"]) == ("error", "result_not_spooled", "a", "t")


@pytest.mark.parametrize("error", [QueueAway("x"), QueueRefused("x")])
@pytest.mark.parametrize("calls", [1, 2])
def test_an_end_waits_while_redis_is_away(shared: Shared, error: QueueError, calls: int) -> None:
    given: Any = shared.redis
    shared.redis.answers["finish"] = [error] if calls == 1 else [QueueError("type"), error]
    with pytest.raises(type(error)):
        finish_jobs(given, "s", [end()], shared.log)
    assert len(shared.redis.calls) == calls and shared.lines.kept == []


def test_a_record_that_redis_does_not_take_ends_its_job_without_it_and_no_other(shared: Shared) -> None:
    given: Any = shared.redis
    one, two = end("a", record=RECORD, note={"x": 1}, trace_id="t"), end("b", record=RECORD)
    shared.redis.answers["finish"] = [QueueError("type"), QueueError("type"), ["OK"], ["DUP"]]
    assert finish_jobs(given, "s", [one, two], shared.log) == ["OK", "DUP"]
    without = replace(one, record=None, note={"x": 1, "record_refused": "type"})
    assert [call[1] for call in shared.redis.called("finish")] == [[one, two], [one], [without], [two]]
    ((level, event, fields),) = shared.lines.kept
    assert (level, event, fields["job_id"], fields["trace_id"]) == ("error", "record_refused", "a", "t")


def test_records_in_the_outbox_are_delivered_and_refused_ones_logged(shared: Shared) -> None:
    given: Any = shared.redis
    delivered: list[list[str]] = []
    answer = Delivery(1, refused=(("a.b.1", "type"),))

    def deliver(tickets: list[str]) -> Delivery:
        delivered.append(tickets)
        return answer

    shared.redis.outbox = SimpleNamespace(deliver=deliver)
    shared.redis.answers["finish"] = [["OK", "OK"]]
    assert finish_jobs(given, "s", [end("a.b", record=RECORD), end("c")], shared.log) == ["OK", "OK"]
    assert delivered == [["a.b.1"]]
    assert shared.lines.kept == [("error", "record_refused", {"job_id": "a.b", "error": "type"})]


# --- the spool ---


def test_a_spooled_end_comes_back_whole_and_is_forgotten_once(shared: Shared, tmp_path: Path) -> None:
    one, two = end("a", record=RECORD, note={"x": 1}, trace_id="t"), end("b", "cancelled")
    for ending in (one, two, one, end("c", "retry")):
        shared.spool.store("s", ending)
    assert len(shared.spool) == 2 and spooled(shared) == ["a.1.json", "b.1.json"]
    again = Spool(tmp_path)
    assert list(again.stored()) == [("s", one), ("s", two)]
    again.remove(JobLease("a", 1))
    again.remove(JobLease("a", 1))
    again.remove(JobLease("z", 1))
    assert spooled(shared) == ["b.1.json"]
    again.store("s", one)
    assert len(again) == 2
    shared.spool.store("s", one)
    (shared.spool.folder / "a.1.json").unlink()
    shared.spool.store("s", one)
    assert spooled(shared) == ["b.1.json"], "it was kept before"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"record": 1}', '{"record": null, "ticket": {"id": "a", "fence": "x"}}']
)
def test_a_damaged_end_is_set_aside(shared: Shared, tmp_path: Path, text: str) -> None:
    (shared.spool.folder / "a.1.json").write_text(text)
    (shared.spool.folder / "b.tmp").touch()
    again = Spool(tmp_path)
    assert list(again.stored()) == [] and spooled(shared) == ["a.1.damaged"] and len(again) == 0
    assert shared.spool.folder.stat().st_mode & 0o777 == 0o700


# --- heartbeat_module ---


def test_a_beat_renews_leases_and_slots_and_tells_what_redis_says(shared: Shared) -> None:
    heartbeat = shared.heartbeat()
    for number in range(7):
        shared.hold(str(number))
    held = shared.in_flight.all()
    held[0].progress, held[0].slot_host = {"done": 1}, "host"
    held[1].phase = InFlightPhase.FENCED_OFF
    held[2].phase, held[2].slot_host = InFlightPhase.RECORDING, "host"
    held[3].phase, held[3].slot_host = InFlightPhase.AWAITING_HOST_SLOT, "host"
    shared.redis.answers["heartbeat"] = HeartbeatResult(
        0, ("OK", "LOST", "LOST", "cancel", "pause", "OK"), (("h", 9.0),)
    )
    heartbeat._beat()
    named = [(JobLease(name, 1), '{"done":1}' if name == "0" else "") for name in "023456"]
    assert shared.redis.called("heartbeat") == [("s", named, ("lease_s", LEASE_S), ("info", {"i": 1}))]
    assert shared.slots == [("renew", [("host", "0")], LEASE_S)]
    assert shared.posted == [
        HostHeld("h", 9.0),
        LeaseLost("3.1"),
        StopRequested("4.1", "cancel"),
        StopRequested("5.1", "pause"),
    ]
    assert shared.redis_state.registered.is_set() and shared.claimed == []


@pytest.mark.parametrize(("strays", "is_news"), [(0, False), (1, True), (2, True)])
def test_jobs_that_redis_holds_for_us_are_asked_for(shared: Shared, strays: int, is_news: bool) -> None:
    heartbeat = shared.heartbeat()
    shared.redis.answers["heartbeat"] = HeartbeatResult(strays, ())
    heartbeat._beat()
    assert shared.claimed == (["reconcile"] if is_news else [])


def due(shared: Shared, heartbeat: Heartbeat, until_s: float, step_s: float = 1.0) -> dict[str, list[float]]:
    """Return the times at which each kind of call was made within ``seconds``."""
    began = shared.clock.now
    done: dict[str, list[float]] = {}
    while shared.clock.now - began <= until_s:
        before = len(shared.redis.calls)
        swept = len(shared.swept)
        heartbeat._turn()
        names = shared.redis.names()[before:] + ["sweep"] * (len(shared.swept) - swept)
        for name in names:
            done.setdefault(name, []).append(shared.clock.now - began)
        shared.clock.now += step_s
    return done


def test_each_work_has_its_time(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "SAMPLE_S", 8.0)
    heartbeat = shared.heartbeat()
    done = due(shared, heartbeat, 31)
    assert done["heartbeat"] == [0, 10, 20, 30]
    assert done["recover"] == [0, 5, 10, 15, 20, 25, 30]
    assert done["sweep"] == [0, 30]
    assert done["sample_"] == [0, 8, 16, 24]
    assert shared.redis.called("recover")[0] == (("grace_s", GRACE_S), ("order", "fifo"))
    waits = [call[1][1] for call in shared.blocking.called("blpop")]
    assert waits[0] == BLOCK_S and shared.lines.kept == []


def test_a_short_grace_is_looked_after_more_often(shared: Shared) -> None:
    assert due(shared, shared.heartbeat(grace_s=2.0), 6)["recover"] == [0, 2, 4, 6]


@pytest.mark.parametrize(("left_s", "wait_s"), [(10.0, BLOCK_S), (0.5, min(BLOCK_S, 0.5)), (0.01, 0.05), (-1.0, 0.05)])
def test_mail_is_waited_for_until_the_next_beat(shared: Shared, left_s: float, wait_s: float) -> None:
    heartbeat = shared.heartbeat()
    shared.redis_state.report_heartbeat()
    heartbeat._turn()
    heartbeat._beat_at = shared.clock.now + max(left_s, 0.001)
    if left_s < 0:

        def recover(*_: Any, **__: Any) -> RecoveryResult:
            shared.clock.now += 5
            return RecoveryResult(0, ())

        shared.redis.answers["recover"] = recover
        heartbeat._recover_at = 0.0
    heartbeat._turn()
    assert shared.blocking.called("blpop")[-1][1] == ("timeout", pytest.approx(wait_s))


def test_a_supervisor_that_is_not_registered_beats_at_once(shared: Shared) -> None:
    heartbeat = shared.heartbeat()
    heartbeat._turn()
    shared.redis_state.registered.clear()
    heartbeat._turn()
    heartbeat._turn()
    assert len(shared.redis.called("heartbeat")) == 2


def test_mail_is_read_and_means_a_beat_and_a_look(shared: Shared) -> None:
    heartbeat, keys = shared.heartbeat(), shared.redis.keys
    heartbeat._turn()
    assert shared.claimed == [] and heartbeat._beat_at > shared.clock.now
    shared.blocking.answers["blpop"] = [(keys.wake.encode(), b"x"), (keys.mail("s").encode(), b"wake")]
    heartbeat._read_mail(1.0)
    assert (
        shared.claimed == ["wake"] and heartbeat._beat_at > shared.clock.now and shared.blocking.called("delete") == []
    )
    heartbeat._read_mail(1.0)
    assert shared.claimed == ["wake"] * 2 and heartbeat._beat_at == 0.0
    assert shared.blocking.called("delete") == [(keys.mail("s"),)]
    assert shared.blocking.called("blpop")[-1] == ([keys.mail("s"), keys.wake], ("timeout", 1.0))


def test_the_wait_for_mail_is_ended_by_mail_that_does_not_stay(shared: Shared) -> None:
    shared.heartbeat().wake()
    mail = shared.redis.keys.mail("s")
    assert shared.redis.calls[-2:] == [("rpush", mail, "wake"), ("pexpire", mail, heartbeat_module.MAIL_TTL_MS)]


@pytest.mark.parametrize(
    ("answer", "next_s", "is_logged"),
    [(True, SAMPLE_S, False), (False, 2.0, False), (away(), 2.0, False), (KeyError("x"), 600.0, True)],
)
def test_figures_for_charts_are_worth_no_trouble(shared: Shared, answer: Any, next_s: float, is_logged: bool) -> None:
    heartbeat = shared.heartbeat()
    shared.redis.answers["sample_"] = answer
    assert heartbeat._sample() == next_s
    assert [(line.level, line.event) for line in shared.lines.kept] == (
        [("warning", "history_sample_failed")] if is_logged else []
    )


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        (RecoveryResult(0, ()), []),
        (RecoveryResult(2, ()), [("leases_expired", {"jobs": 2})]),
        (RecoveryResult(0, ("a",)), [("jobs_recovered", {"jobs": 1, "job_ids": ["a"]})]),
        (
            RecoveryResult(0, tuple("abcdefghijklmnopqrstu")),
            [("jobs_recovered", {"jobs": 21, "job_ids": list("abcdefghijklmnopqrst")})],
        ),
    ],
)
def test_jobs_of_dead_supervisors_are_requeued(shared: Shared, recovery: RecoveryResult, expected: Any) -> None:
    heartbeat = shared.heartbeat()
    shared.redis.answers["recover"] = recovery
    heartbeat._recover()
    assert [(line.event, line.fields) for line in shared.lines.kept] == expected
    assert all(line.level == "warning" for line in shared.lines.kept)


def test_what_was_left_in_an_outbox_is_shown(shared: Shared) -> None:
    heartbeat = shared.heartbeat()
    heartbeat._replay()
    delivery = Delivery(2, 3, "why", (("a.1", "type"),))
    shared.redis.outbox = SimpleNamespace(replay=lambda: delivery)
    heartbeat._replay()
    assert shared.lines.kept == [
        ("error", "record_refused", {"job_id": "a", "error": "type"}),
        ("warning", "records_pending", {"records": 3, "reason": "why"}),
        ("info", "records_replayed", {"records": 2}),
    ]
    shared.lines.kept.clear()
    shared.redis.outbox = SimpleNamespace(replay=lambda: Delivery())
    heartbeat._turn()
    assert shared.lines.kept == []


def test_a_start_records_what_an_earlier_one_spooled_and_gives_its_jobs_back(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "check_server", lambda _: (ServerWarning("odd", "why"),))
    one = end("a", trace_id="t")
    shared.spool.store("old", one)
    heartbeat = shared.heartbeat(earlier=("old",))
    shared.redis.answers |= {"finish": [["OK"]], "requeue_jobs_of": ("b", "c")}
    heartbeat._recover_earlier_starts()
    assert spooled(shared) == [] and len(shared.signs) == 1
    assert shared.redis.called("finish") == [("old", [one])]
    assert shared.redis.called("requeue_jobs_of") == [(("old",), ("order", "fifo"))]
    assert shared.posted == [ResultRecorded(one, "OK"), JobsTakenBack(("old",))]
    assert shared.lines.kept == [
        ("warning", "odd", {"reason": "why"}),
        ("info", "spooled_result_recorded", {"job_id": "a", "trace_id": "t", "disposition": "success", "reply": "OK"}),
        ("info", "jobs_taken_back", {"jobs": 2, "sids": ("old",)}),
    ]
    assert heartbeat._has_started
    heartbeat._check_server()
    assert len(shared.lines.kept) == 3, "once"


def test_a_first_start_says_nothing(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "check_server", lambda _: ())
    shared.heartbeat()._recover_earlier_starts()
    assert shared.posted == [] and shared.lines.kept == []


def test_the_beat_thread_begins_once_and_beats_first_after_an_absence(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "check_server", lambda _: ())
    heartbeat = shared.heartbeat()
    waits: list[str] = []
    heartbeat._backoff = SimpleNamespace(wait=lambda: waits.append("wait"), reset=lambda: waits.append("reset"))  # type: ignore[assignment]
    begun: list[int] = []
    begin = heartbeat._recover_earlier_starts

    def begins() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise away()
        begin()

    heartbeat._beat_at = 5.0
    monkeypatch.setattr(heartbeat, "_recover_earlier_starts", begins)
    monkeypatch.setattr(heartbeat, "_turn", turns(shared, None, away(), None))
    heartbeat.serve()
    assert len(begun) == 2 and waits == ["wait", "reset", "wait", "reset"]
    assert heartbeat._beat_at == 0.0 and shared.redis_state.error == "away" and len(shared.signs) == 5


@pytest.mark.parametrize(("grace_s", "most_s"), [(15.0, 5.0), (3.0, 1.0)])
def test_a_supervisor_is_back_before_others_take_its_jobs(shared: Shared, grace_s: float, most_s: float) -> None:
    assert shared.heartbeat(grace_s=grace_s)._backoff._max_s == most_s


# --- sweeping ---


def sweeper(shared: Shared, states: dict[str, str]) -> StaleFileSweeper:
    asked: list[str] = []

    def pipeline(*, transaction: bool) -> Any:
        assert not transaction
        asked.clear()
        return SimpleNamespace(
            hget=lambda key, field: asked.append(key) if field == "state" else None,
            execute=lambda: [_state(states, key) for key in asked],
        )

    shared.redis.answers["pipeline"] = pipeline
    return StaleFileSweeper(shared.context(), shared.journal)


def _state(states: dict[str, str], key: str) -> bytes | None:
    found = states.get(key.rpartition(":")[2])
    return found.encode() if found else None


def test_jobs_that_ended_elsewhere_are_swept_and_open_or_held_ones_are_not(shared: Shared) -> None:
    states = dict(zip("abcdef", ["queued", "delayed", "running", "paused", "succeeded", "failed"], strict=True))
    for name in (*states, "gone", "held"):
        shared.journal.add(CleanupEntry(name, "u", name, None, True, 1))
    shared.hold("held")
    sweeper(shared, states).sweep()
    (swept,) = shared.posted
    assert isinstance(swept, StaleFilesFound) and [one.job_id for one in swept.jobs] == ["e", "f", "gone"]


def test_nothing_to_sweep_asks_nothing(shared: Shared) -> None:
    one = sweeper(shared, {})
    one.sweep()
    assert shared.redis.calls == [] and shared.posted == []
    shared.journal.add(CleanupEntry("a", "u", "a", None, True, 1))
    sweeper(shared, {"a": "running"}).sweep()
    assert shared.posted == []


def test_a_sweep_goes_through_all_in_turn(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.queue.sweeping.BATCH", 2)
    for name in "abc":
        shared.journal.add(CleanupEntry(name, "u", name, None, True, 1))
    one = sweeper(shared, {})
    for _ in range(4):
        one.sweep()
    assert [[ended.job_id for ended in swept.jobs] for swept in shared.posted] == [
        ["a", "b"],
        ["c"],
        ["a", "b"],
        ["c"],
    ]
    assert SWEEP_BATCH == 500
