"""The threads of a supervisor that talk to Redis, one turn at a time: what they ask, and what they do with each answer.

Redis is played here, so that each answer and each failure comes when it is wanted.
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
from dlpool.service.queue import claiming as fetching
from dlpool.service.queue import heartbeat as beating
from dlpool.service.queue import recording
from dlpool.service.queue import redis_state as link_module
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
    """Redis and its scripts: each call is kept, and answered by what the test has put in ``answers`` under its name.

    A list is taken from its front; an exception is raised.
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


class Desk:
    """The parts that the threads share."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.redis, self.blocking = Redis(), Redis()
        self.clock, self.lines = Clock(1000.0), Lines()
        for module in (beating, link_module):
            patch.setattr(module, "time", self.clock)
        self.changes: list[str | None] = []
        self.failed: list[str] = []
        log: Any = self.lines
        self.link = RedisState(log, lambda: self.changes.append(self.link.error), self.failed.append)
        self.signs: list[float] = []
        patch.setattr(self.link.liveness, "mark_alive", lambda: self.signs.append(self.clock.now))
        self.ledger = InFlightTable()
        self.ledger.set_capacity(3)
        self.spool, self.trail = Spool(folder), CleanupJournal(folder)
        self.posted: list[Any] = []
        self.slots: list[tuple[Any, ...]] = []
        self.log = log

    def context(self, order: str = "fifo", grace_s: float = GRACE_S) -> QueueContext:
        redis: Any = self.redis
        return QueueContext(
            redis, "s", self.ledger, self.link, self.log, LEASE_S, grace_s, lambda: order, self.posted.append
        )

    def fetcher(self, order: str = "fifo") -> JobClaimer:
        blocking: Any = self.blocking
        return JobClaimer(self.context(order), blocking, 20)

    def recorder(self) -> ResultRecorder:
        made = ResultRecorder(self.context(), self.spool)
        made._slots = Slots(self.slots)  # type: ignore[assignment]
        return made

    def beater(self, *, grace_s: float = GRACE_S, earlier: tuple[str, ...] = ()) -> Heartbeat:
        blocking: Any = self.blocking
        self.fetched: list[str] = []
        fetcher: Any = SimpleNamespace(
            wake=lambda: self.fetched.append("wake"), request_reconcile=lambda: self.fetched.append("reconcile")
        )
        self.swept: list[float] = []
        sweeper: Any = SimpleNamespace(sweep=lambda: self.swept.append(self.clock.now))
        made = Heartbeat(
            self.context(grace_s=grace_s),
            blocking,
            self.spool,
            fetcher,
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
        assert self.ledger.add(held)
        return held


class Slots:
    """The slots of hosts."""

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
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


def away() -> QueueAway:
    return QueueAway("away")


# --- whether Redis is there ---


def test_an_absence_is_told_once_and_so_is_its_end(desk: Desk) -> None:
    link = desk.link
    assert link.error is None and not link.registered.is_set()
    link.report_heartbeat()
    assert link.registered.is_set() and desk.lines.kept == [] and desk.changes == []
    for error in (QueueAway("one"), QueueRefused("two"), QueueError("three")):
        link.report_failure(error)
        assert not link.registered.is_set() and link.error == str(error)
    assert desk.failed == ["unavailable", "refused", "other"] and desk.changes == ["one"]
    assert [(line.level, line.event, str(line.fields["error"])) for line in desk.lines.kept] == [
        ("warning", "redis_unavailable", "one")
    ]
    link.report_heartbeat()
    assert link.error is None and link.registered.is_set() and desk.changes == ["one", None]
    assert desk.lines.kept[1:] == [("info", "redis_available", {})]


def test_a_thread_signs_when_it_goes_round(desk: Desk) -> None:
    assert desk.link.keep_running() and len(desk.signs) == 1
    desk.link.stopping.set()
    assert not desk.link.keep_running() and len(desk.signs) == 2


def test_waits_between_tries_double_to_a_bound_and_begin_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    stopping: Any = SimpleNamespace(wait=waits.append)
    backoff = Backoff(stopping, 0.5)
    for _ in range(4):
        backoff.wait()
    backoff.reset()
    backoff.wait()
    assert waits == [0.1, 0.2, 0.4, 0.5, 0.1]


def test_calls_are_kept_apart_and_the_first_is_not_late(desk: Desk) -> None:
    pace, times = CallSpacing(2.0), []
    for seconds in (0.0, 0.5, 2.0, 1.5):
        desk.clock.now += seconds
        pace.wait()
        times.append(desk.clock.now - 1000.0)
    assert times == [0.0, 2.0, 4.0, 6.0]


# --- fetching ---


def claim(desk: Desk, *jobs: Any, due_s: float | None = None, **fields: Any) -> ClaimResult:
    made = ClaimResult(jobs, due_s, **fields)
    desk.redis.answers["claim"] = [made]
    return made


def test_jobs_are_claimed_for_free_slots_and_handed_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "lease_clock", lambda: 7.0)
    desk.hold()
    fetcher = desk.fetcher()
    claim(desk, job_of("b"))
    fetcher._turn()
    assert desk.redis.called("claim") == [
        ("s", [JobLease("a", 1)], 2, ("lease_s", LEASE_S), ("order", "fifo"), ("max_throttled", 20), ("shares", None))
    ]
    assert desk.posted == [JobsClaimed((job_of("b"),), 7.0 + LEASE_S)]
    assert not fetcher._may_claim.is_set() and not fetcher._must_reconcile.is_set()
    fetcher.resume()
    assert fetcher._may_claim.is_set()
    claim(desk, job_of("c"))
    fetcher._turn()
    assert desk.redis.called("claim")[1][1] is None, "only new ones"
    fetcher.request_reconcile()
    fetcher.stop()
    claim(desk, job_of("c"))
    fetcher._turn()
    assert desk.redis.called("claim")[2][1:3] == ([JobLease("a", 1)], 0), "stopped: only what is ours"
    assert desk.blocking.calls == []


def test_jobs_of_other_hosts_are_not_looked_for_again_within_a_second_where_none_was_found(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("dlpool.service.queue.claiming.time.monotonic", lambda: now[0])
    desk.ledger.host_share = 0.5
    fetcher = desk.fetcher()
    parts = []
    for at, is_alone in ((100.0, False), (100.1, True), (100.2, False), (101.0, False), (101.2, False)):
        now[0] = at
        claim(desk, job_of("b"), is_share_exceeded=is_alone, skipped=500 if is_alone else 0)
        fetcher._turn()
        parts.append(dict(desk.redis.called("claim")[-1][3:])["shares"] is not None)
    assert parts == [True, True, False, False, True]


def test_a_supervisor_that_redis_does_not_know_registers_first(desk: Desk) -> None:
    fetcher = desk.fetcher()
    desk.link.report_heartbeat()
    desk.redis.answers["claim"] = [None]
    fetcher._turn()
    assert fetcher._must_reconcile.is_set() and not desk.link.registered.is_set() and desk.posted == []


@pytest.mark.parametrize(("due_s", "wait_s"), [(None, BLOCK_S), (0.25, 0.251), (BLOCK_S, BLOCK_S), (99.0, BLOCK_S)])
@pytest.mark.parametrize("order", ["fifo", "lifo"])
def test_a_supervisor_with_room_waits_for_work(desk: Desk, due_s: float | None, wait_s: float, order: str) -> None:
    fetcher = desk.fetcher(order)
    claim(desk, due_s=due_s)
    ids: list[Any] = []
    desk.blocking.answers["client_id"] = 5
    desk.blocking.answers["execute_command"] = lambda *_: ids.append(fetcher._waiting_id)
    fetcher._turn()
    side = "LEFT" if order == "lifo" else "RIGHT"
    keys = desk.redis.keys
    assert desk.blocking.called("execute_command") == [("BLMOVE", keys.intake, keys.inbox("s"), side, "LEFT", wait_s)]
    assert ids == [5] and fetcher._waiting_id is None


def test_without_room_nothing_waits(desk: Desk) -> None:
    desk.ledger.set_capacity(0)
    fetcher = desk.fetcher()
    claim(desk)
    fetcher._turn()
    assert desk.blocking.calls == []


@pytest.mark.parametrize("why", ["is_paused", "is_throttle_full", ""])
def test_a_queue_that_gives_no_jobs_is_not_waited_for_in_its_list(desk: Desk, why: str) -> None:
    fetcher = desk.fetcher()
    waits: list[float] = []
    looked: Any = SimpleNamespace(wait=waits.append, clear=lambda: waits.append(-1), set=lambda: waits.append(-2))
    fetcher._woken = looked
    claim(desk, **({why: True} if why else {}))
    fetcher._turn()
    assert waits == ([BLOCK_S, -1] if why else [])
    assert (desk.blocking.calls == []) == bool(why)


def test_a_look_ends_the_wait(desk: Desk) -> None:
    fetcher = desk.fetcher()
    fetcher.wake()
    assert desk.redis.calls == [] and fetcher._woken.is_set()
    fetcher._waiting_id = 5
    fetcher.wake()
    assert desk.redis.called("client_unblock") == [(5,)]


def test_a_wait_that_fails_is_not_ended_by_its_old_id(desk: Desk) -> None:
    fetcher = desk.fetcher()
    desk.blocking.answers |= {"client_id": 5, "execute_command": away()}
    with pytest.raises(QueueAway):
        fetcher._wait_for_intake(1.0)
    assert fetcher._waiting_id is None


def test_a_wait_at_a_list_of_another_type_says_that_redis_cannot_be_used(desk: Desk) -> None:
    fetcher = desk.fetcher()
    desk.blocking.answers |= {"client_id": 5, "execute_command": QueueError("refuses: WRONGTYPE")}
    desk.redis.answers["check_keys"] = QueueUnusable("its key is a string")
    with pytest.raises(QueueUnusable, match="its key is a string"):
        fetcher._wait_for_intake(1.0)
    desk.redis.answers["check_keys"] = None
    with pytest.raises(QueueError, match="WRONGTYPE"):
        fetcher._wait_for_intake(1.0)


def turns(desk: Desk, *steps: Any) -> Callable[..., Any]:
    """What a thread's step does in each turn; after the last one all stop."""
    left = list(steps)

    def step(*_: Any, **__: Any) -> Any:
        now = left.pop(0)
        if not left:
            desk.link.stopping.set()
        if isinstance(now, Exception):
            raise now
        return now

    return step


def test_the_fetch_thread_asks_for_everything_after_an_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    fetcher = desk.fetcher()
    desk.link.report_heartbeat()
    waits: list[str] = []

    def wait() -> None:
        waits.append("wait")
        desk.link.registered.set()

    backoff: Any = SimpleNamespace(wait=wait, reset=lambda: waits.append("reset"))
    fetcher._backoff = backoff
    fetcher._must_reconcile.clear()
    monkeypatch.setattr(fetcher, "_turn", turns(desk, None, away(), None))
    fetcher.serve()
    assert waits == ["reset", "wait", "reset"] and fetcher._must_reconcile.is_set()
    assert desk.link.error == "away" and len(desk.signs) == 4


def test_the_fetch_thread_finds_out_who_waits_when_it_is_asked_and_there_is_no_room(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PAUSE_S", 0.001)
    fetcher = desk.fetcher()
    desk.link.report_heartbeat()
    desk.ledger.set_capacity(0)
    desk.redis.answers["waiting_hosts"] = [{"h": 2}]
    fetcher._must_reconcile.clear()
    fetcher.request_waiting_hosts()
    monkeypatch.setattr(desk.ledger.has_free_slot, "wait", turns(desk, False, False, False))
    fetcher.serve()
    assert desk.posted == [WaitingHosts({"h": 2})] and desk.redis.called("claim") == []
    assert desk.redis.called("waiting_hosts") == [("s", ("order", "fifo"))], "asked once, told once"


@pytest.mark.parametrize("missing", ["registered", "handed_over", "room", "strays"])
def test_the_fetch_thread_claims_only_when_that_can_help(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    fetcher = desk.fetcher()
    waited: list[str] = []

    def event(name: str, is_set: bool) -> Any:
        def wait(seconds: float) -> bool:
            waited.append(name)
            assert seconds == fetching.PAUSE_S
            if not is_set:
                desk.link.stopping.set()
            return is_set

        return SimpleNamespace(wait=wait, is_set=lambda: is_set, set=lambda: None)

    fetcher._must_reconcile = event("strays", missing == "strays")
    desk.link.registered = event("registered", missing != "registered")
    fetcher._may_claim = event("handed_over", missing != "handed_over")
    desk.ledger.has_free_slot = event("room", missing != "room")
    monkeypatch.setattr(fetcher, "_turn", turns(desk, None))
    fetcher.serve()
    if missing == "strays":
        assert waited == ["registered", "handed_over"], "then room is not waited for"
    else:
        assert waited == ["registered", "handed_over", "room"][: len(waited)] and waited[-1] == missing
        fetcher._turn()  # not taken yet


# --- recording ---


def end(name: str = "a", outcome: str = "success", **fields: Any) -> FinishRequest:
    return FinishRequest(JobLease(name, 1), Disposition(outcome), **fields)


def spooled(desk: Desk) -> list[str]:
    return sorted(path.name for path in desk.spool.folder.iterdir())


def test_questions_are_asked_before_ends_are_told(desk: Desk) -> None:
    recorder = desk.recorder()
    desk.redis.answers |= {
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
    desk.spool.store("s", ends[0])
    pending = recorder._take(wait=True)
    recorder._send(pending)
    assert pending == [] and len(desk.signs) == 1
    assert desk.slots == [("acquire", "host", "w", LEASE_S, True), ("release", "host", "a")]
    tickets = [(JobLease(name, 1), "") for name in "xyz"]
    assert desk.redis.calls == [
        ("hold_host", "host", 9.0),
        ("heartbeat", "s", tickets, ("lease_s", LEASE_S)),
        ("finish", "s", ends),
    ]
    assert desk.posted == [
        HostSlotAnswered("w.1", SlotReply(0)),
        FenceChecked("x.1", True),
        FenceChecked("y.1", False),
        FenceChecked("z.1", True),
        *(ResultRecorded(one, "OK") for one in ends),
    ]
    assert spooled(desk) == []


def test_many_are_told_in_portions_each_with_a_sign_of_life(desk: Desk) -> None:
    recorder = desk.recorder()
    desk.redis.answers["finish"] = lambda _sid, ends: ["OK"] * len(ends)
    ends = [end(str(number)) for number in range(BATCH + 1)]
    pending: list[Any] = list(ends)
    recorder._send(pending)
    assert [len(call[1]) for call in desk.redis.called("finish")] == [BATCH, 1] and len(desk.signs) == 2
    assert [one.request for one in desk.posted] == ends


def test_nothing_to_ask_asks_nothing(desk: Desk) -> None:
    recorder = desk.recorder()
    desk.redis.answers["finish"] = [["DUP"]]
    recorder._send([end()])
    assert desk.redis.names() == ["finish"]
    recorder._send([HostHeld("h", 1.0)])
    assert desk.redis.names() == ["finish", "hold_host"]


def test_a_taker_waits_for_the_first_only(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, paced = desk.recorder(), []
    recorder._spacing = SimpleNamespace(wait=lambda: paced.append(1))  # type: ignore[assignment]
    monkeypatch.setattr(recording, "WAIT_S", 0.001)
    assert recorder._take(wait=True) == [] == recorder._take(wait=False) and paced == []
    for name in "abc":
        recorder.record(end(name))
    assert [one.lease.job_id for one in recorder._take(wait=True) if isinstance(one, FinishRequest)] == ["a", "b", "c"]
    assert paced == [1]


def test_ends_that_cannot_be_told_are_spooled_and_told_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = desk.recorder()
    waits: list[str] = []
    recorder._backoff = SimpleNamespace(wait=lambda: waits.append("wait"), reset=lambda: waits.append("reset"))  # type: ignore[assignment]
    monkeypatch.setattr(recording, "WAIT_S", 0.001)
    recorder.record(end("a"))
    recorder.record(end("b", "retry"))
    recorder.check_fence(JobLease("x", 1))
    kept: list[list[str]] = []

    def beat(*_: Any, **__: Any) -> HeartbeatResult:
        kept.append(spooled(desk))
        if len(kept) == 1:
            raise QueueAway("one")
        if len(kept) == 2:
            raise QueueRefused("two")
        desk.link.stopping.set()
        return HeartbeatResult(0, ("OK",))

    desk.redis.answers |= {"heartbeat": beat, "finish": lambda _sid, ends: ["OK"] * len(ends)}
    recorder.serve()
    assert kept == [[], ["a.1.json"], ["a.1.json"]] and spooled(desk) == []
    assert waits == ["wait", "wait", "reset"] and desk.failed == ["unavailable", "refused"]
    assert desk.posted == [
        FenceChecked("x.1", True),
        ResultRecorded(end("a"), "OK"),
        ResultRecorded(end("b", "retry"), "OK"),
    ]


def test_what_is_in_line_at_the_end_is_spooled(desk: Desk) -> None:
    recorder = desk.recorder()
    desk.link.stopping.set()
    recorder.record(end("a"))
    recorder.check_fence(JobLease("x", 1))
    recorder.record(end("b"))
    recorder.serve()
    assert spooled(desk) == ["a.1.json", "b.1.json"] and desk.redis.calls == []
    assert len(desk.signs) == 3


def test_an_end_that_cannot_be_spooled_is_logged(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise LocalFault("full")

    monkeypatch.setattr(desk.spool, "store", refuse)
    desk.recorder()._spool_results([end(trace_id="t")])
    ((level, event, fields),) = desk.lines.kept
    assert (level, event, fields["job_id"], fields["trace_id"]) == ("error", "result_not_spooled", "a", "t")


@pytest.mark.parametrize("error", [QueueAway("x"), QueueRefused("x")])
@pytest.mark.parametrize("calls", [1, 2])
def test_an_end_waits_while_redis_is_away(desk: Desk, error: QueueError, calls: int) -> None:
    given: Any = desk.redis
    desk.redis.answers["finish"] = [error] if calls == 1 else [QueueError("type"), error]
    with pytest.raises(type(error)):
        finish_jobs(given, "s", [end()], desk.log)
    assert len(desk.redis.calls) == calls and desk.lines.kept == []


def test_a_record_that_redis_does_not_take_ends_its_job_without_it_and_no_other(desk: Desk) -> None:
    given: Any = desk.redis
    one, two = end("a", record=RECORD, note={"x": 1}, trace_id="t"), end("b", record=RECORD)
    desk.redis.answers["finish"] = [QueueError("type"), QueueError("type"), ["OK"], ["DUP"]]
    assert finish_jobs(given, "s", [one, two], desk.log) == ["OK", "DUP"]
    without = replace(one, record=None, note={"x": 1, "record_refused": "type"})
    assert [call[1] for call in desk.redis.called("finish")] == [[one, two], [one], [without], [two]]
    ((level, event, fields),) = desk.lines.kept
    assert (level, event, fields["job_id"], fields["trace_id"]) == ("error", "record_refused", "a", "t")


def test_records_in_the_outbox_are_delivered_and_refused_ones_logged(desk: Desk) -> None:
    given: Any = desk.redis
    delivered: list[list[str]] = []
    answer = Delivery(1, refused=(("a.b.1", "type"),))

    def deliver(tickets: list[str]) -> Delivery:
        delivered.append(tickets)
        return answer

    desk.redis.outbox = SimpleNamespace(deliver=deliver)
    desk.redis.answers["finish"] = [["OK", "OK"]]
    assert finish_jobs(given, "s", [end("a.b", record=RECORD), end("c")], desk.log) == ["OK", "OK"]
    assert delivered == [["a.b.1"]]
    assert desk.lines.kept == [("error", "record_refused", {"job_id": "a.b", "error": "type"})]


# --- the spool ---


def test_a_spooled_end_comes_back_whole_and_is_forgotten_once(desk: Desk, tmp_path: Path) -> None:
    one, two = end("a", record=RECORD, note={"x": 1}, trace_id="t"), end("b", "cancelled")
    for ending in (one, two, one, end("c", "retry")):
        desk.spool.store("s", ending)
    assert len(desk.spool) == 2 and spooled(desk) == ["a.1.json", "b.1.json"]
    again = Spool(tmp_path)
    assert list(again.stored()) == [("s", one), ("s", two)]
    again.remove(JobLease("a", 1))
    again.remove(JobLease("a", 1))
    again.remove(JobLease("z", 1))
    assert spooled(desk) == ["b.1.json"]
    again.store("s", one)
    assert len(again) == 2
    desk.spool.store("s", one)
    (desk.spool.folder / "a.1.json").unlink()
    desk.spool.store("s", one)
    assert spooled(desk) == ["b.1.json"], "it was kept before"


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"record": 1}', '{"record": null, "ticket": {"id": "a", "fence": "x"}}']
)
def test_a_damaged_end_is_set_aside(desk: Desk, tmp_path: Path, text: str) -> None:
    (desk.spool.folder / "a.1.json").write_text(text)
    (desk.spool.folder / "b.tmp").touch()
    again = Spool(tmp_path)
    assert list(again.stored()) == [] and spooled(desk) == ["a.1.damaged"] and len(again) == 0
    assert desk.spool.folder.stat().st_mode & 0o777 == 0o700


# --- beating ---


def test_a_beat_renews_leases_and_slots_and_tells_what_redis_says(desk: Desk) -> None:
    beater = desk.beater()
    for number in range(7):
        desk.hold(str(number))
    held = desk.ledger.all()
    held[0].progress, held[0].slot_host = {"done": 1}, "host"
    held[1].phase = InFlightPhase.FENCED_OFF
    held[2].phase, held[2].slot_host = InFlightPhase.RECORDING, "host"
    held[3].phase, held[3].slot_host = InFlightPhase.AWAITING_HOST_SLOT, "host"
    desk.redis.answers["heartbeat"] = HeartbeatResult(0, ("OK", "LOST", "LOST", "cancel", "pause", "OK"), (("h", 9.0),))
    beater._beat()
    named = [(JobLease(name, 1), '{"done":1}' if name == "0" else "") for name in "023456"]
    assert desk.redis.called("heartbeat") == [("s", named, ("lease_s", LEASE_S), ("info", {"i": 1}))]
    assert desk.slots == [("renew", [("host", "0")], LEASE_S)]
    assert desk.posted == [
        HostHeld("h", 9.0),
        LeaseLost("3.1"),
        StopRequested("4.1", "cancel"),
        StopRequested("5.1", "pause"),
    ]
    assert desk.link.registered.is_set() and desk.fetched == []


@pytest.mark.parametrize(("strays", "is_news"), [(0, False), (1, True), (2, True)])
def test_jobs_that_redis_holds_for_us_are_asked_for(desk: Desk, strays: int, is_news: bool) -> None:
    beater = desk.beater()
    desk.redis.answers["heartbeat"] = HeartbeatResult(strays, ())
    beater._beat()
    assert desk.fetched == (["reconcile"] if is_news else [])


def due(desk: Desk, beater: Heartbeat, until_s: float, step_s: float = 1.0) -> dict[str, list[float]]:
    """When each kind of work was done in that many seconds of turns."""
    began = desk.clock.now
    done: dict[str, list[float]] = {}
    while desk.clock.now - began <= until_s:
        before = len(desk.redis.calls)
        swept = len(desk.swept)
        beater._turn()
        names = desk.redis.names()[before:] + ["sweep"] * (len(desk.swept) - swept)
        for name in names:
            done.setdefault(name, []).append(desk.clock.now - began)
        desk.clock.now += step_s
    return done


def test_each_work_has_its_time(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beating, "SAMPLE_S", 8.0)
    beater = desk.beater()
    done = due(desk, beater, 31)
    assert done["heartbeat"] == [0, 10, 20, 30]
    assert done["recover"] == [0, 5, 10, 15, 20, 25, 30]
    assert done["sweep"] == [0, 30]
    assert done["sample_"] == [0, 8, 16, 24]
    assert desk.redis.called("recover")[0] == (("grace_s", GRACE_S), ("order", "fifo"))
    waits = [call[1][1] for call in desk.blocking.called("blpop")]
    assert waits[0] == BLOCK_S and desk.lines.kept == []


def test_a_short_grace_is_looked_after_more_often(desk: Desk) -> None:
    assert due(desk, desk.beater(grace_s=2.0), 6)["recover"] == [0, 2, 4, 6]


@pytest.mark.parametrize(("left_s", "wait_s"), [(10.0, BLOCK_S), (0.5, min(BLOCK_S, 0.5)), (0.01, 0.05), (-1.0, 0.05)])
def test_mail_is_waited_for_until_the_next_beat(desk: Desk, left_s: float, wait_s: float) -> None:
    beater = desk.beater()
    desk.link.report_heartbeat()
    beater._turn()
    beater._beat_at = desk.clock.now + max(left_s, 0.001)
    if left_s < 0:

        def recover(*_: Any, **__: Any) -> RecoveryResult:
            desk.clock.now += 5
            return RecoveryResult(0, ())

        desk.redis.answers["recover"] = recover
        beater._recover_at = 0.0
    beater._turn()
    assert desk.blocking.called("blpop")[-1][1] == ("timeout", pytest.approx(wait_s))


def test_a_supervisor_that_is_not_registered_beats_at_once(desk: Desk) -> None:
    beater = desk.beater()
    beater._turn()
    desk.link.registered.clear()
    beater._turn()
    beater._turn()
    assert len(desk.redis.called("heartbeat")) == 2


def test_mail_is_read_and_means_a_beat_and_a_look(desk: Desk) -> None:
    beater, keys = desk.beater(), desk.redis.keys
    beater._turn()
    assert desk.fetched == [] and beater._beat_at > desk.clock.now
    desk.blocking.answers["blpop"] = [(keys.wake.encode(), b"x"), (keys.mail("s").encode(), b"wake")]
    beater._read_mail(1.0)
    assert desk.fetched == ["wake"] and beater._beat_at > desk.clock.now and desk.blocking.called("delete") == []
    beater._read_mail(1.0)
    assert desk.fetched == ["wake"] * 2 and beater._beat_at == 0.0
    assert desk.blocking.called("delete") == [(keys.mail("s"),)]
    assert desk.blocking.called("blpop")[-1] == ([keys.mail("s"), keys.wake], ("timeout", 1.0))


def test_the_wait_for_mail_is_ended_by_mail_that_does_not_stay(desk: Desk) -> None:
    desk.beater().wake()
    mail = desk.redis.keys.mail("s")
    assert desk.redis.calls[-2:] == [("rpush", mail, "wake"), ("pexpire", mail, beating.MAIL_TTL_MS)]


@pytest.mark.parametrize(
    ("answer", "next_s", "is_logged"),
    [(True, SAMPLE_S, False), (False, 2.0, False), (away(), 2.0, False), (KeyError("x"), 600.0, True)],
)
def test_figures_for_charts_are_worth_no_trouble(desk: Desk, answer: Any, next_s: float, is_logged: bool) -> None:
    beater = desk.beater()
    desk.redis.answers["sample_"] = answer
    assert beater._sample() == next_s
    assert [(line.level, line.event) for line in desk.lines.kept] == (
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
def test_jobs_of_supervisors_that_are_gone_are_given_back(desk: Desk, recovery: RecoveryResult, expected: Any) -> None:
    beater = desk.beater()
    desk.redis.answers["recover"] = recovery
    beater._recover()
    assert [(line.event, line.fields) for line in desk.lines.kept] == expected
    assert all(line.level == "warning" for line in desk.lines.kept)


def test_what_was_left_in_an_outbox_is_shown(desk: Desk) -> None:
    beater = desk.beater()
    beater._replay()
    delivery = Delivery(2, 3, "why", (("a.1", "type"),))
    desk.redis.outbox = SimpleNamespace(replay=lambda: delivery)
    beater._replay()
    assert desk.lines.kept == [
        ("error", "record_refused", {"job_id": "a", "error": "type"}),
        ("warning", "records_pending", {"records": 3, "reason": "why"}),
        ("info", "records_replayed", {"records": 2}),
    ]
    desk.lines.kept.clear()
    desk.redis.outbox = SimpleNamespace(replay=lambda: Delivery())
    beater._turn()
    assert desk.lines.kept == []


def test_a_start_records_what_an_earlier_one_spooled_and_gives_its_jobs_back(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "check_server", lambda _: (ServerWarning("odd", "why"),))
    one = end("a", trace_id="t")
    desk.spool.store("old", one)
    beater = desk.beater(earlier=("old",))
    desk.redis.answers |= {"finish": [["OK"]], "requeue_jobs_of": ("b", "c")}
    beater._recover_earlier_starts()
    assert spooled(desk) == [] and len(desk.signs) == 1
    assert desk.redis.called("finish") == [("old", [one])]
    assert desk.redis.called("requeue_jobs_of") == [(("old",), ("order", "fifo"))]
    assert desk.posted == [ResultRecorded(one, "OK"), JobsTakenBack(("old",))]
    assert desk.lines.kept == [
        ("warning", "odd", {"reason": "why"}),
        ("info", "spooled_result_recorded", {"job_id": "a", "trace_id": "t", "disposition": "success", "reply": "OK"}),
        ("info", "jobs_taken_back", {"jobs": 2, "sids": ("old",)}),
    ]
    assert beater._has_started
    beater._check_server()
    assert len(desk.lines.kept) == 3, "once"


def test_a_first_start_says_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beating, "check_server", lambda _: ())
    desk.beater()._recover_earlier_starts()
    assert desk.posted == [] and desk.lines.kept == []


def test_the_beat_thread_begins_once_and_beats_first_after_an_absence(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beating, "check_server", lambda _: ())
    beater = desk.beater()
    waits: list[str] = []
    beater._backoff = SimpleNamespace(wait=lambda: waits.append("wait"), reset=lambda: waits.append("reset"))  # type: ignore[assignment]
    begun: list[int] = []
    begin = beater._recover_earlier_starts

    def begins() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise away()
        begin()

    beater._beat_at = 5.0
    monkeypatch.setattr(beater, "_recover_earlier_starts", begins)
    monkeypatch.setattr(beater, "_turn", turns(desk, None, away(), None))
    beater.serve()
    assert len(begun) == 2 and waits == ["wait", "reset", "wait", "reset"]
    assert beater._beat_at == 0.0 and desk.link.error == "away" and len(desk.signs) == 5


@pytest.mark.parametrize(("grace_s", "most_s"), [(15.0, 5.0), (3.0, 1.0)])
def test_a_supervisor_is_back_before_others_take_its_jobs(desk: Desk, grace_s: float, most_s: float) -> None:
    assert desk.beater(grace_s=grace_s)._backoff._max_s == most_s


# --- sweeping ---


def sweeper(desk: Desk, states: dict[str, str]) -> StaleFileSweeper:
    asked: list[str] = []

    def pipeline(*, transaction: bool) -> Any:
        assert not transaction
        asked.clear()
        return SimpleNamespace(
            hget=lambda key, field: asked.append(key) if field == "state" else None,
            execute=lambda: [_state(states, key) for key in asked],
        )

    desk.redis.answers["pipeline"] = pipeline
    return StaleFileSweeper(desk.context(), desk.trail)


def _state(states: dict[str, str], key: str) -> bytes | None:
    found = states.get(key.rpartition(":")[2])
    return found.encode() if found else None


def test_jobs_that_ended_elsewhere_are_swept_and_open_or_held_ones_are_not(desk: Desk) -> None:
    states = dict(zip("abcdef", ["queued", "delayed", "running", "paused", "succeeded", "failed"], strict=True))
    for name in (*states, "gone", "held"):
        desk.trail.add(CleanupEntry(name, "u", name, None, True, 1))
    desk.hold("held")
    sweeper(desk, states).sweep()
    (swept,) = desk.posted
    assert isinstance(swept, StaleFilesFound) and [one.job_id for one in swept.jobs] == ["e", "f", "gone"]


def test_nothing_to_sweep_asks_nothing(desk: Desk) -> None:
    one = sweeper(desk, {})
    one.sweep()
    assert desk.redis.calls == [] and desk.posted == []
    desk.trail.add(CleanupEntry("a", "u", "a", None, True, 1))
    sweeper(desk, {"a": "running"}).sweep()
    assert desk.posted == []


def test_a_sweep_goes_through_all_in_turn(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.queue.sweeping.BATCH", 2)
    for name in "abc":
        desk.trail.add(CleanupEntry(name, "u", name, None, True, 1))
    one = sweeper(desk, {})
    for _ in range(4):
        one.sweep()
    assert [[ended.job_id for ended in swept.jobs] for swept in desk.posted] == [
        ["a", "b"],
        ["c"],
        ["a", "b"],
        ["c"],
    ]
    assert SWEEP_BATCH == 500
