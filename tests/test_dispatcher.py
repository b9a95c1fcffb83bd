"""The way of a job through a supervisor: taken in, given to a worker, heard of, recorded; without processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dlpool.config import LimitSettings
from dlpool.jobs.host_slots import SlotReply
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, JobLease
from dlpool.service.inflight import InFlightPhase
from dlpool.service.job_log import trace_id_of
from dlpool.service.queue.messages import HostHeld, HostSlotAnswered, ResultRecorded
from dlpool.service.wire import frames as frames_module
from dlpool.service.wire.frames import (
    CancelFrame,
    CleanedFrame,
    CleanFrame,
    CleanupEntry,
    EndedFrame,
    HelloFrame,
    HoldFrame,
    JobFrame,
    LostFrame,
    PublishFrame,
    StatusFrame,
    VerifiedFrame,
)
from dlpool.service.wire.results import AttemptResult
from dlpool.transfer.target.state import url_digest
from tests.bench import URL, Bench, job_of


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def ended(name: str = "a", attempt_result: str = "succeeded", **fields: Any) -> EndedFrame:
    result = {"size": 3, "seconds": 0.5} if attempt_result == "succeeded" else {}
    return EndedFrame(f"{name}.1", AttemptResult(attempt_result), f"/data/{name}", result, **fields)


# --- in ---


def test_a_claimed_job_waits_for_a_worker(bench: Bench) -> None:
    bench.dispatcher.needs_reconcile = False
    bench.dispatcher.accept(job_of(trace_id="t" * 32), 5.0)
    held = bench.in_flight.get("a.1")
    assert held is not None and held.job is not None
    assert (held.job.url, held.leased_until, held.trace_id) == (URL, 5.0, "t" * 32)
    assert bench.told.ended == [] and bench.lines.kept == [] and not bench.dispatcher.needs_reconcile


def test_a_claimed_job_that_saw_a_worker_die_needs_a_comparison_at_once(bench: Bench) -> None:
    bench.dispatcher.needs_reconcile = False
    bench.dispatcher.accept(job_of(crashes=1), 0.0)
    assert bench.dispatcher.needs_reconcile
    bench.dispatcher.accept(job_of("b"), 0.0)
    assert bench.dispatcher.needs_reconcile


def test_a_new_dispatcher_needs_a_comparison_and_knows_no_fault(bench: Bench) -> None:
    assert bench.dispatcher.needs_reconcile and bench.node_faults == []


def test_a_malformed_job_fails_once_even_if_it_is_claimed_twice(bench: Bench) -> None:
    for _ in range(2):
        bench.dispatcher.accept(job_of(raw=b"none"), 0.0)
    (request,) = bench.told.ended
    assert (request.disposition, request.note["label"], request.host) == ("failed", "malformed", "")
    assert request.trace_id == trace_id_of("a", None)
    assert bench.lines.kept == []
    held = bench.in_flight.get("a.1")
    assert held is not None and held.is_recording and bench.in_flight.busy == 0


def test_a_job_that_is_claimed_twice_runs_once(bench: Bench) -> None:
    held = bench.held()
    worker = bench.worker()
    bench.dispatcher.assign_waiting()
    bench.dispatcher.accept(job_of(), 9.0)
    bench.dispatcher.assign_waiting()
    assert bench.in_flight.get("a.1") is held and held.leased_until == 0.0
    assert [type(frame) for frame in worker.heard()] == [JobFrame]


def broken(*_: object, **__: object) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("place", ["policy", "host"])
def test_a_defect_while_a_job_is_accepted_fails_it_and_is_logged(
    bench: Bench, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: Any = type(bench.dispatcher.policy) if place == "policy" else bench.host_admission
    monkeypatch.setattr(target, "admit", broken)
    bench.dispatcher.accept(job_of(), 0.0)
    (request,) = bench.told.ended
    assert (request.disposition, request.note["label"], request.trace_id) == (
        "failed",
        "internal",
        trace_id_of("a", None),
    )
    (line,) = bench.lines.named("job_internal_error")
    assert line.level == "error" and isinstance(line.fields["error"], ZeroDivisionError)
    held = bench.in_flight.get("a.1")
    assert held is not None and held.is_recording and bench.in_flight.busy == 0


def test_a_defect_at_the_second_claim_of_a_job_does_not_end_its_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bench.held()
    monkeypatch.setattr(type(bench.dispatcher.policy), "admit", broken)
    bench.dispatcher.accept(job_of(), 0.0)
    assert bench.told.ended == [] and not held.is_recording and bench.in_flight.get("a.1") is held
    assert bench.lines.events == ["job_internal_error"]


def test_a_job_of_a_held_host_is_throttled(bench: Bench) -> None:
    bench.hosts.hold("host", 30.0)
    bench.dispatcher.accept(job_of(is_start_reserved=True), 0.0)
    request = bench.last()
    assert (request.disposition, request.host, request.delay_s, request.is_start_reserved) == (
        "throttle",
        "host",
        30.0,
        True,
    )
    assert request.trace_id == trace_id_of("a", None)
    bench.worker()
    bench.dispatcher.assign_waiting()
    assert [held.worker_pid for held in bench.in_flight.all()] == [None]


def test_a_hold_of_less_than_a_second_throttles_nothing(bench: Bench) -> None:
    bench.hosts.hold("host", 30.0)
    bench.clock.now += 29.0
    bench.held("a")
    assert bench.told.ended == []


@pytest.mark.parametrize(("before", "is_throttled"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_host_with_limited_concurrency_gets_no_more_jobs(bench: Bench, before: int, is_throttled: bool) -> None:
    for number in range(before):
        bench.held(str(number))
    bench.held("other", url="http://other/x")
    bench.in_flight.set_phase(bench.held("over"), InFlightPhase.RECORDING)
    bench.dispatcher.accept(job_of("none", raw=b"none"), 0.0)
    bench.told.ended.clear()
    bench.concurrency.record_refusal("host", lambda: 4)
    bench.held("a", is_start_reserved=True)
    assert len(bench.told.ended) == is_throttled
    for request in bench.told.ended:
        assert (request.disposition, request.host, request.delay_s) == ("throttle", "host", 5.0)
        assert request.waits_for_slot and request.is_start_reserved


# --- to workers ---


def test_an_assigned_job_is_sent_and_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.assignment.time", bench.clock)
    worker = bench.worker()
    held = bench.held()
    bench.dispatcher.assign_waiting()
    (frame,) = worker.heard()
    assert isinstance(frame, JobFrame) and (frame.lease_id, frame.url, frame.attempt) == ("a.1", URL, 1)
    assert (held.worker_pid, held.assigned_at) == (worker.handle.pid, bench.clock.now)
    assert set(worker.handle.jobs) == {"a.1"} and worker.handle.assigned_count == 1
    assert bench.journal.entries() == {
        "a": CleanupEntry("a", url_digest(URL), "/data/a", None, True, 1, trace_id_of("a", None))
    }
    bench.dispatcher.assign_waiting()
    assert worker.heard() == []


def test_a_job_that_is_too_large_for_a_frame_fails_and_others_do_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = bench.worker()
    bench.held("a", url=f"http://host/{'x' * 2000}")
    bench.held("b")
    monkeypatch.setattr(frames_module, "MAX_FRAME", 1000)
    bench.dispatcher.assign_waiting()
    (request,) = bench.told.ended
    assert (request.lease.job_id, request.disposition, request.note["label"]) == ("a", "failed", "bad_job")
    assert set(worker.handle.jobs) == {"b.1"} and worker.handle.assigned_count == 1
    assert set(bench.journal.entries()) == {"b"}


def test_quarantined_jobs_run_alone_and_are_counted_until_they_end(bench: Bench) -> None:
    ordinary, alone = bench.worker(), bench.worker(1, is_quarantine=True)
    quarantined, other = bench.held("a", crashes=2), bench.held("b")
    assert bench.dispatcher.count_quarantined() == 1
    bench.dispatcher.assign_waiting()
    assert (quarantined.worker_pid, other.worker_pid) == (alone.handle.pid, ordinary.handle.pid)
    assert bench.dispatcher.count_quarantined() == 1
    bench.in_flight.set_phase(quarantined, InFlightPhase.RECORDING)
    assert bench.dispatcher.count_quarantined() == 0


@pytest.mark.parametrize("phase", [one for one in InFlightPhase if one is not InFlightPhase.WAITING])
def test_only_waiting_jobs_are_assigned(bench: Bench, phase: InFlightPhase) -> None:
    worker = bench.worker()
    bench.held().phase = phase
    bench.dispatcher.assign_waiting()
    assert worker.heard() == []


# --- from workers ---


def test_a_worker_that_is_ready_needs_a_comparison(bench: Bench) -> None:
    worker = bench.worker(is_ready=False)
    bench.dispatcher.needs_reconcile = False
    worker.say(HelloFrame(1))
    bench.dispatcher.read_frames(worker.handle)
    assert worker.handle.is_ready and bench.dispatcher.needs_reconcile
    assert bench.lines.events == ["worker_started"]


def test_a_heartbeat_brings_counts_and_progress(bench: Bench) -> None:
    worker = bench.worker()
    one, two = bench.held("a", worker), bench.held("b", worker)
    one.missing_bytes = 9
    worker.say(StatusFrame({"gone.1": {}, "a.1": {"done": 1}, "b.1": {"done": 2}}, {"received": 5.0}, {"b.1": 7}))
    worker.say(StatusFrame({}, {"received": 8.0}))
    bench.dispatcher.read_frames(worker.handle)
    assert (one.progress, one.missing_bytes, two.progress, two.missing_bytes) == ({"done": 1}, 0, {"done": 2}, 7)
    assert bench.collector.received_bytes == 8 == bench.value("dlpool_received_bytes_total")


@pytest.mark.parametrize(("is_held", "is_lost"), [(True, False), (True, True), (False, False)])
def test_the_fence_of_a_verified_job_is_checked_unless_it_is_fenced_off(
    bench: Bench, is_held: bool, is_lost: bool
) -> None:
    worker = bench.worker()
    if is_held:
        held = bench.held("a", worker)
        held.phase = InFlightPhase.FENCED_OFF if is_lost else held.phase
    worker.say(VerifiedFrame("a.1"))
    bench.dispatcher.read_frames(worker.handle)
    if is_held and not is_lost:
        assert bench.told.checked == [JobLease("a", 1)] and worker.heard() == []
    else:
        assert bench.told.checked == [] and worker.heard() == [LostFrame("a.1")]


def test_a_hold_that_a_worker_reports_is_sent_to_all(bench: Bench) -> None:
    one, other = bench.worker(), bench.worker()
    one.say(HoldFrame("host", 20.0))
    bench.dispatcher.read_frames(one.handle)
    assert one.heard() == other.heard() == [HoldFrame("host", 20.0)]
    assert bench.told.holds == [HostHeld("host", 20.0)]
    assert bench.lines.kept == [("info", "host_held", {"host": "host", "seconds": 20.0, "is_ours": True})]
    one.say(HoldFrame("host", 20.5))
    bench.dispatcher.read_frames(one.handle)
    assert one.heard() == [] and len(bench.told.holds) == 1


def test_what_a_worker_has_cleaned_leaves_the_journal(bench: Bench) -> None:
    worker = bench.worker()
    job = CleanupEntry("a", url_digest(URL), "/data/a", None, True, 1)
    bench.cleanup.record_start(job)
    bench.cleanup.enqueue([job], worker.handle.pid)
    bench.cleanup.send_requests(now=True)
    assert worker.heard() == [CleanFrame([list(job)])] and bench.journal.entries() == {"a": job}
    worker.say(CleanedFrame(["a", "gone"]))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.journal.entries() == {} and worker.handle.cleanup_requests == {}


# --- how they end ---


def test_a_success_is_recorded_with_its_path(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlpool.service.dispatcher.time", bench.clock)
    worker = bench.worker()
    held = bench.held("a", worker)
    held.assigned_at = bench.clock.now - 3.0
    worker.say(ended(needs_cleanup=False, stack="s"))
    bench.dispatcher.read_frames(worker.handle)
    request = bench.last()
    assert (request.disposition, request.trace_id, request.host) == ("success", held.trace_id, "")
    assert (held.path, held.needs_cleanup, held.stack) == ("/data/a", False, "s")
    assert held.is_recording and bench.in_flight.busy == 0
    assert worker.handle.jobs == worker.handle.ahead == {}
    assert bench.value("dlpool_job_seconds_sum", attempt_result="succeeded") == 3.0
    worker.say(ended())
    bench.dispatcher.read_frames(worker.handle)
    assert len(bench.told.ended) == 1 == bench.value("dlpool_job_seconds_count", attempt_result="succeeded")
    assert bench.journal.entries() == {}


def test_the_result_of_an_unknown_or_malformed_job_is_ignored(bench: Bench) -> None:
    worker = bench.worker()
    worker.say(ended("gone"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.told.ended == [] and bench.lines.kept == []


def test_a_path_that_the_server_named_is_in_the_journal_before_the_record(bench: Bench) -> None:
    worker = bench.worker()
    bench.held("a", worker)
    worker.say(replace(ended(), path="/data/named"))
    bench.dispatcher.read_frames(worker.handle)
    noted = bench.journal.entries()["a"]
    assert (noted.path, noted.has_failed) == ("/data/named", True)


def test_a_node_fault_is_reported_once_and_fails_no_job(bench: Bench) -> None:
    worker, dispatcher = bench.worker(), bench.dispatcher
    for name in ("a", "b", "c", "d"):
        bench.held(name, worker)
    dispatcher.needs_reconcile = False
    worker.say(ended("a", "node_fault", label="no_space", message="full"))
    dispatcher.read_frames(worker.handle)
    assert dispatcher.needs_reconcile and bench.node_faults == [bench.clock.now]
    assert (bench.last().disposition, bench.last().delay_s) == ("release", 30.0)
    (line,) = bench.lines.named("node_fault")
    assert line.level == "warning" and line.fields["label"] == "no_space" and line.fields["reason"] == "full"
    dispatcher.needs_reconcile = False
    for name, attempt_result in (("b", "locked"), ("c", "no_room"), ("d", "succeeded")):
        worker.say(ended(name, attempt_result))
        dispatcher.read_frames(worker.handle)
    assert not dispatcher.needs_reconcile and len(bench.lines.named("node_fault")) == len(bench.node_faults) == 1


@pytest.mark.parametrize(("is_lost", "attempt_result"), [(True, "succeeded"), (False, "lost")])
def test_a_job_of_another_supervisor_ends_without_a_record(bench: Bench, is_lost: bool, attempt_result: str) -> None:
    worker = bench.worker()
    held = bench.held("a", worker)
    held.phase = InFlightPhase.FENCED_OFF if is_lost else held.phase
    worker.say(ended("a", attempt_result))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.told.ended == [] and len(bench.in_flight) == 0
    assert [(line.level, line.event) for line in bench.lines.kept] == [("warning", "job_lost")]
    assert bench.value("dlpool_requeued_jobs_total", disposition="lost", label="") == 1


def test_a_host_that_refuses_jobs_gets_fewer_and_is_named_when_one_leaves(bench: Bench) -> None:
    worker = bench.worker(4)
    for name in "abcd":
        bench.held(name, worker)
    worker.say(ended("a", "retry", label="server_busy", message="503"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.concurrency.is_limited("host") and bench.last().host == "host"
    assert [(line.event, line.fields["jobs"]) for line in bench.lines.kept] == [("host_jobs_changed", 2)]
    assert (bench.last().disposition, bench.last().delay_s) == ("retry", 5.0)


def test_a_host_slot_is_released_with_the_result(bench: Bench) -> None:
    worker = bench.worker()
    bench.held("a", worker).slot_host = "host"
    worker.say(ended())
    bench.dispatcher.read_frames(worker.handle)
    assert bench.last().host == "host"


def test_a_defect_in_releasing_a_host_slot_does_not_change_the_disposition(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.host_admission, "released_host", broken)
    worker = bench.worker()
    bench.held("a", worker).slot_host = "host"
    worker.say(ended())
    bench.dispatcher.read_frames(worker.handle)
    assert (bench.last().disposition, bench.last().host) == ("success", "host")
    assert [(line.level, line.event) for line in bench.lines.kept] == [("error", "job_internal_error")]


def test_the_jobs_of_a_dead_worker_are_requeued_at_once(bench: Bench) -> None:
    worker, other = bench.worker(4), bench.worker()
    for name in "abcd":
        bench.held(name, worker)
    bench.held("e", other)
    held = {name: bench.in_flight.get(f"{name}.1") for name in "abcd"}
    assert held["a"] is not None and held["b"] is not None
    held["a"].phase = InFlightPhase.FENCED_OFF
    bench.in_flight.set_phase(held["b"], InFlightPhase.RECORDING)
    worker.handle.jobs["0.1"] = 0.0  # gone from the table
    kept = CleanupEntry("x", url_digest(URL), "/data/x", None, True, 1)
    worker.handle.cleanup_requests["x"] = kept
    worker.say(ended("d"))  # its last words
    bench.dispatcher.reap(worker.handle, "killed by SIGKILL")
    assert [(one.lease.job_id, one.disposition, one.note.get("message")) for one in bench.told.ended] == [
        ("d", "success", None),
        ("c", "crash", "killed by SIGKILL"),
    ]
    assert bench.in_flight.get("a.1") is None and len(bench.in_flight) == 4
    assert worker.handle.jobs == worker.handle.ahead == {}
    assert worker.handle.cleanup_requests == {}
    bench.pool.workers.pop(worker.handle.pid)
    bench.cleanup.send_requests(now=True)
    assert other.heard() == [CleanFrame([list(kept)])]


# --- from Redis ---


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_verified_job_is_published_if_it_is_still_ours(bench: Bench, is_ours: bool) -> None:
    worker = bench.worker()
    held = bench.held("a", worker)
    bench.dispatcher.handle_fence_check("a.1", is_ours=is_ours)
    assert worker.heard() == ([PublishFrame("a.1")] if is_ours else [LostFrame("a.1")])
    assert held.is_fenced_off == (not is_ours)


@pytest.mark.parametrize("is_ours", [True, False])
def test_a_fence_check_of_a_job_without_a_worker_sends_nothing(bench: Bench, is_ours: bool) -> None:
    worker = bench.worker()
    held = bench.held("a", worker)
    worker.handle.jobs.clear()
    bench.dispatcher.handle_fence_check("gone.1", is_ours=is_ours)
    bench.dispatcher.handle_fence_check("a.1", is_ours=True)
    held.worker_pid = 1
    bench.dispatcher.handle_fence_check("a.1", is_ours=True)
    assert worker.heard() == [] and len(bench.in_flight) == 1


@pytest.mark.parametrize("state", ["waits", "runs", "RECORDING", "FENCED_OFF"])
def test_a_fenced_off_job_stops_without_a_record(bench: Bench, state: str) -> None:
    worker = bench.worker()
    held = bench.held("a", worker if state != "waits" else None)
    if state.isupper():
        held.phase = InFlightPhase[state]
    bench.dispatcher.fence_off("a.1")
    bench.dispatcher.fence_off("gone.1")
    assert worker.heard() == ([LostFrame("a.1")] if state == "runs" else [])
    assert (bench.in_flight.get("a.1") is None) == (state == "waits")
    assert held.is_fenced_off == (state in ("runs", "FENCED_OFF")) and bench.told.ended == []


@pytest.mark.parametrize("action", ["cancel", "pause"])
def test_an_operator_stops_a_waiting_job_at_once_and_a_running_one_by_its_worker(bench: Bench, action: str) -> None:
    worker = bench.worker()
    bench.held("a")
    running = bench.held("b", worker)
    for _ in range(2):
        bench.dispatcher.request_stop("a.1", action)
        bench.dispatcher.request_stop("b.1", action)
        bench.dispatcher.request_stop("gone.1", action)
    assert [(one.lease.job_id, one.disposition) for one in bench.told.ended] == [
        ("a", {"cancel": "cancelled", "pause": "pause"}[action])
    ]
    assert worker.heard() == [CancelFrame("b.1", f"an operator requested to {action} the job")]
    assert running.requested_action == action and not running.is_recording
    worker.say(ended("b", "released"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.last().disposition == {"cancel": "cancelled", "pause": "pause"}[action]


def test_a_pause_can_become_a_cancel_but_not_the_other_way_round(bench: Bench) -> None:
    worker = bench.worker()
    held = bench.held("a", worker)
    for action in ("pause", "cancel", "pause"):
        bench.dispatcher.request_stop("a.1", action)
    assert held.requested_action == "cancel"
    assert worker.heard() == [
        CancelFrame("a.1", f"an operator requested to {action} the job") for action in ("pause", "cancel")
    ]


@pytest.mark.parametrize("state", ["RECORDING", "FENCED_OFF", "no job", "left"])
def test_a_job_that_cannot_be_stopped_is_left_alone(bench: Bench, state: str) -> None:
    worker = bench.worker()
    held = bench.held("a", worker)
    if state == "no job":
        held.job = None
    elif state == "left":
        worker.handle.jobs.clear()  # its worker has said how it ended, or has died
    else:
        held.phase = InFlightPhase[state]
    bench.dispatcher.request_stop("a.1", "cancel")
    assert worker.heard() == [] and bench.told.ended == []


def test_a_job_with_a_host_slot_is_assigned(bench: Bench) -> None:
    limits = LimitSettings(max_per_host=1)
    bench.hosts.apply(replace(bench.settings, limits=limits))
    worker = bench.worker()
    held = bench.held("a", is_start_reserved=True)
    (request,) = bench.told.requests
    assert (request.lease, request.limit.host, request.limit.most, request.is_start_reserved) == (
        JobLease("a", 1),
        "host",
        1,
        True,
    )
    assert held.phase is InFlightPhase.AWAITING_HOST_SLOT and held.slot_host == "host"
    bench.dispatcher.assign_waiting()
    assert worker.heard() == []
    bench.dispatcher.handle_host_slot(HostSlotAnswered("a.1", SlotReply(0)))
    bench.dispatcher.handle_host_slot(HostSlotAnswered("a.1", SlotReply(None)))  # an answer that comes twice
    bench.dispatcher.assign_waiting()
    assert [type(frame) for frame in worker.heard()] == [JobFrame]
    assert bench.told.ended == [] and bench.lines.kept == []


@pytest.mark.parametrize(
    ("place", "delay_s", "is_start_reserved", "waits_for_slot"),
    [
        (SlotReply(None), 5.0, False, True),
        (SlotReply(0.5, is_start_reserved=True), 0.5, True, False),
        (SlotReply(0.0001), 0.001, False, False),
    ],
)
def test_a_job_whose_host_has_no_slot_is_throttled(
    bench: Bench, place: SlotReply, delay_s: float, is_start_reserved: bool, waits_for_slot: bool
) -> None:
    bench.hosts.apply(replace(bench.settings, limits=LimitSettings(max_per_host=1)))
    held = bench.held("a")
    bench.dispatcher.handle_host_slot(HostSlotAnswered("gone.1", place))
    bench.dispatcher.handle_host_slot(HostSlotAnswered("a.1", place))
    request = bench.last()
    assert (request.disposition, request.host, request.delay_s) == ("throttle", "host", delay_s)
    assert (request.is_start_reserved, request.waits_for_slot) == (is_start_reserved, waits_for_slot)
    assert request.note == {"label": "host_limit", "message": "requests to host are limited"}
    assert held.slot_host == "" and held.phase is not InFlightPhase.AWAITING_HOST_SLOT


def test_a_host_slot_for_a_job_that_has_ended_changes_nothing(bench: Bench) -> None:
    bench.hosts.apply(replace(bench.settings, limits=LimitSettings(max_per_host=1)))
    held = bench.held("a")
    bench.dispatcher.request_stop("a.1", "cancel")
    bench.dispatcher.handle_host_slot(HostSlotAnswered("a.1", SlotReply(None)))
    assert [one.disposition for one in bench.told.ended] == ["cancelled"] and held.slot_host == "host"


def test_a_host_whose_slots_are_unknown_is_logged(bench: Bench) -> None:
    bench.hosts.apply(replace(bench.settings, limits=LimitSettings(max_per_host=1)))
    bench.held("a")
    bench.dispatcher.handle_host_slot(HostSlotAnswered("a.1", SlotReply(None, problem="away")))
    assert bench.lines.kept == [("warning", "host_slot_unknown", {"host": "host", "reason": "away"})]
    assert bench.last().disposition == "throttle"


# --- recorded ---


def record(bench: Bench, outcome: str, reply: str = "OK", **fields: Any) -> None:
    held = bench.in_flight.get("a.1")
    label = fields.pop("label", "")
    note = {"label": label} if label else {}
    request = FinishRequest(JobLease("a", 1), Disposition(outcome), note=note, **fields)
    if held is not None:
        bench.in_flight.set_phase(held, InFlightPhase.RECORDING)
    bench.dispatcher.handle_recorded(ResultRecorded(request, reply))


@pytest.mark.parametrize(
    ("outcome", "reply", "needs_cleanup", "is_hooked", "is_cleaned", "is_forgotten"),
    [
        ("success", "OK", True, True, True, False),
        ("success", "OK", False, True, False, True),
        ("success", "DUP", False, True, False, True),
        ("failed", "OK", True, True, True, False),
        ("failed", "OK", False, True, True, False),
        ("cancelled", "OK", False, True, True, False),
        ("retry", "OK", True, True, False, False),
        ("release", "OK", True, True, False, False),
        ("success", "FENCED", True, False, False, False),
        ("success", "GONE", True, False, True, False),
        ("failed", "GONE", True, False, True, False),
    ],
)
def test_a_recorded_result_is_logged_and_its_stale_files_are_cleaned(
    bench: Bench, outcome: str, reply: str, needs_cleanup: bool, is_hooked: bool, is_cleaned: bool, is_forgotten: bool
) -> None:
    other, worker = bench.worker(), bench.worker()
    held = bench.held("a", worker)
    job = CleanupEntry("a", url_digest(URL), "/data/a", None, True, 1, held.trace_id)
    bench.cleanup.record_start(job)
    held.needs_cleanup = needs_cleanup
    record(bench, outcome, reply)
    assert len(bench.in_flight) == 0 and len(bench.lines.kept) == 1
    assert [one.disposition for _, one in bench.hooked] == ([outcome] if is_hooked else [])
    assert (bench.journal.entries() == {}) == is_forgotten
    bench.cleanup.send_requests(now=True)
    cleaned = [list(job._replace(has_failed=outcome != "success"))]
    assert worker.heard() == ([CleanFrame(cleaned)] if is_cleaned else []) and other.heard() == []


def test_a_result_that_an_earlier_run_spooled_is_only_counted(bench: Bench) -> None:
    record(bench, "failed", label="bad_job")
    assert bench.lines.kept == [] and bench.hooked == []
    assert bench.value("dlpool_jobs_total", outcome="failed", label="bad_job") == 1


def test_a_malformed_job_leaves_nothing_to_clean(bench: Bench) -> None:
    bench.worker()
    bench.dispatcher.accept(job_of(raw=b"none"), 0.0)
    record(bench, "failed")
    assert bench.lines.events == ["job_malformed"] and len(bench.in_flight) == 0
    assert bench.cleanup._pending == {}


@pytest.mark.parametrize("is_held_back", [False, True])
def test_the_first_of_equal_jobs_runs_after_all(bench: Bench, is_held_back: bool) -> None:
    worker = bench.worker()
    bench.dispatcher.accept(job_of(dedupe=True), 0.0)
    request = bench.last()
    assert request.disposition == "follow" and bench.in_flight.busy == 0
    if is_held_back:
        bench.hosts.hold("host", 30.0)
    bench.dispatcher.handle_recorded(ResultRecorded(request, "LEADS"))
    bench.dispatcher.handle_recorded(ResultRecorded(replace(request, lease=JobLease("gone", 1)), "LEADS"))
    bench.dispatcher.assign_waiting()
    assert [type(frame) for frame in worker.heard()] == ([] if is_held_back else [JobFrame])
    assert bench.last().disposition == ("throttle" if is_held_back else "follow")
    assert bench.in_flight.busy == (0 if is_held_back else 1) and bench.lines.kept == []


def test_a_follower_leaves(bench: Bench) -> None:
    bench.dispatcher.accept(job_of(dedupe=True), 0.0)
    bench.dispatcher.handle_recorded(ResultRecorded(bench.last(), "FOLLOWS"))
    assert len(bench.in_flight) == 0


# --- the end ---


def test_waiting_jobs_are_released_and_running_ones_checkpointed(bench: Bench) -> None:
    worker = bench.worker()
    bench.held("a")
    bench.held("b", worker)
    bench.held("c", worker)
    request = bench.in_flight.get("c.1")
    assert request is not None
    bench.in_flight.set_phase(request, InFlightPhase.RECORDING)
    for _ in range(2):
        bench.dispatcher.release_waiting("the end")
    (released,) = bench.told.ended
    assert (released.lease.job_id, released.disposition) == ("a", "release")
    assert released.note == {"label": "released", "message": "the end"} and released.trace_id != ""
    bench.dispatcher.cancel_running("the end")
    assert worker.heard() == [CancelFrame("b.1", "the end")]
