"""Which transfers give their slots to jobs that wait: the rules, and who applies them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlpool.config import Settings
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.metrics import Metrics
from dlpool.service.inflight import InFlightJob, InFlightPhase, InFlightTable
from dlpool.service.monitor.metrics_collector import RECENT, RECENT_S, MetricsCollector
from dlpool.service.wire.frames import CancelFrame, EndedFrame, StatusFrame
from dlpool.service.wire.results import AttemptResult
from dlpool.service.yield_control import ANSWER_VALID_S, MAX_SLOW_HOSTS, SLOW_S, YieldController
from dlpool.service.yield_policy import (
    FAR_BELOW,
    HOST_SHARE,
    SHARE_MIN_RUNTIME_S,
    SLOW,
    RunningTransfer,
    YieldDecision,
    YieldRules,
    choose_yields,
    is_fast_enough,
    may_yield,
    min_runtime_s,
)
from tests.bench import URL, Bench, Worker, job_of
from tests.fakes import Clock

RULES = YieldRules(min_runtime_s=20, min_rate=8000, host_quota=3)
OTHERS = {"w": 9}


def transfers(text: str, **fields: Any) -> list[RunningTransfer]:
    """``a:1500 b:90k*`` are one of host a at 1500 bytes/s and a young one of b at 90,000; their leases are numbers."""
    made = []
    for number, one in enumerate(text.split()):
        host, _, rate = one.rstrip("*").partition(":")
        rate_of = float(rate.rstrip("k")) * (1000 if rate.endswith("k") else 1)
        made.append(RunningTransfer(str(number), host, rate_of, 1.0 if one.endswith("*") else 25.0, **fields))
    return made


CHOICES: dict[str, tuple[str, dict[str, int], str]] = {
    # what runs, what waits: which yield, and why (h: host_share, f: far_below, s: slow)
    "all slots slow": ("a:1500 a:1400 a:1600", {"w": 20}, "s1 s0 s2"),
    "all slots slow, one waits": ("a:1500 a:1400 a:1600", {"w": 1}, "s1"),
    "all slots slow, of several hosts": ("a:1500 b:1400 c:1600 a:1700", {"w": 2}, "s0 s3"),
    "nothing waits": ("a:1500 a:1400 a:1600", {}, ""),
    "only their own host waits": ("a:1500 a:1400 a:1600", {"a": 50}, ""),
    "their own host waits, and one other": ("a:1500 a:1400 a:1600", {"a": 50, "w": 1}, "s1"),
    "all young": ("a:1500* a:1400* a:1600*", OTHERS, ""),
    "one is old enough": ("a:1500* a:1400* a:1600", OTHERS, "s2"),
    "one far below its host": ("a:90k a:80k a:5k", {"a": 1}, "f2"),
    "one far below its host, silent": ("a:90k a:80k a:0", {"a": 1}, "f2"),
    "one far below the node, others wait": ("a:90k b:80k c:8.5k", OTHERS, ""),
    "far below the node": ("a:900k b:800k c:20k", OTHERS, "f2"),
    "far below the node, its own host waits": ("a:900k b:800k c:20k", {"c": 5}, ""),
    "two are no median": ("a:900k b:20k", OTHERS, ""),
    "half as fast": ("a:900k b:800k c:450k", OTHERS, ""),
    "more than its part": ("a:900k a:700k a:800k a:1000k", OTHERS, "h1"),
    "more than its part, one waits": ("a:900k a:700k a:800k a:1000k a:1000k", {"w": 1}, "h1"),
    "more than its part by two": ("a:900k a:700k a:800k a:1000k a:1000k", OTHERS, "h1 h2"),
    "more than its part, only its own host waits": ("a:900k a:700k a:800k a:1000k", {"a": 5}, ""),
    "more than its part, young": ("a:900k* a:700k* a:800k* a:1000k*", OTHERS, ""),
    "its part": ("a:900k a:700k a:800k b:1000k", OTHERS, ""),
    "slow and more than its part": ("a:1k a:2k a:3k a:4k", {"w": 2}, "h0 s1"),
    "the fast one stays": ("a:1k b:2k c:900k", OTHERS, "s0 s1"),
}


def told(choice: list[YieldDecision]) -> str:
    letters = {HOST_SHARE: "h", FAR_BELOW: "f", SLOW: "s"}
    return " ".join(letters[one.reason] + one.lease_id for one in choice)


@pytest.mark.parametrize("case", CHOICES)
def test_slow_transfers_yield_while_others_wait(case: str) -> None:
    running, waiting, expected = CHOICES[case]
    assert told(choose_yields(transfers(running), waiting, RULES)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "s0"),
        ({"remaining": 15_000}, ""),  # done in ten seconds
        ({"remaining": 16_000}, "s0"),
        ({"remaining": 0}, ""),
        ({"rate_limit": 2000.0}, ""),  # a limit of ours
        ({"rate_limit": 3200.0}, "s0"),
        ({"is_moving": False}, ""),
        ({"is_resumable": False}, "s0"),
        ({"yields": 1}, ""),
        ({"yields": 1, "age_s": 40.0}, "s0"),
        ({"yields": 5, "age_s": 639.0}, ""),
        ({"yields": 5, "age_s": 640.0}, "s0"),
        ({"yields": 10**9, "age_s": 10.0**9}, ""),
        ({"age_s": 19.9}, ""),
        ({"rate": 8000.0}, ""),
        ({"rate": 0.0, "remaining": 5}, "s0"),
    ],
)
def test_a_slow_transfer_yields_unless(fields: dict[str, Any], expected: str) -> None:
    one = replace(RunningTransfer("0", "a", 1500.0, 25.0), **fields)
    assert told(choose_yields([one], OTHERS, RULES)) == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "h0"),
        ({"is_resumable": False}, ""),
        ({"age_s": 1.9}, ""),
        ({"age_s": 2.0}, "h0"),
        ({"rate_limit": 9.0}, "h0"),
        ({"yields": 2}, ""),
        ({"yields": 2, "age_s": 8.0}, "h0"),
    ],
)
def test_a_fast_transfer_yields_the_part_of_others_unless(fields: dict[str, Any], expected: str) -> None:
    one = replace(RunningTransfer("0", "a", 900_000.0, 6.0), **fields)
    rest = [RunningTransfer(str(number), "a", 1_000_000.0, 6.0) for number in range(1, 4)]
    found = choose_yields([one, *rest], {"w": 1}, RULES)
    assert told(found) == (expected or "h1")


@pytest.mark.parametrize(
    ("running", "expected"),
    [
        ("s:1500 s:1400 t:1600 u:900k", "s1 s0"),
        ("s:1500 a:1400 u:900k", "s1"),  # the one of a, as it is slow itself
        ("s:1500 t:9k", "s0"),
        ("s:90k t:80k u:900k", "s1"),
    ],
)
def test_slow_hosts_together_have_a_part(running: str, expected: str) -> None:
    rules = replace(RULES, slow_hosts={"s", "t"}, slow_quota=1)
    young = [replace(one, age_s=2.0 if one.host in rules.slow_hosts else 25.0) for one in transfers(running)]
    assert told(choose_yields(young, OTHERS, rules)) == expected
    assert choose_yields([replace(one, age_s=1.9) for one in young], OTHERS, rules) == []


def test_what_ended_lately_says_what_is_usual() -> None:
    slow = transfers("a:20k a:20k a:20k")
    assert choose_yields(slow, OTHERS, RULES) == []
    assert told(choose_yields(slow, OTHERS, RULES, recent=[900_000.0] * 4)) == "f0 f1 f2"


def test_those_that_were_told_before_count() -> None:
    slow = transfers("a:1500 a:1400 a:1600")
    assert [len(choose_yields(slow, {"w": 2}, RULES, pending=count)) for count in range(4)] == [2, 1, 0, 0]


def test_whether_any_may_yield_is_known_without_those_that_wait() -> None:
    assert may_yield(transfers("a:1500 b:900k"), RULES)
    assert not may_yield(transfers("a:1500* b:900k"), RULES)


# --- what always holds ---

RATES = st.one_of(st.just(0.0), st.floats(0, 1e9), st.sampled_from([1500.0, 8000.0, 1e6]))
HOSTS = st.sampled_from("abcd")
RUNNING = st.lists(
    st.builds(
        RunningTransfer,
        lease_id=st.uuids().map(str),
        host=HOSTS,
        rate=RATES,
        age_s=st.floats(0, 1e5),
        remaining=st.none() | st.integers(0, 10**12),
        yields=st.integers(0, 40),
        rate_limit=st.none() | st.floats(1, 1e6),
        is_resumable=st.booleans(),
        is_moving=st.booleans(),
    ),
    max_size=12,
    unique_by=lambda one: one.lease_id,
)
WAITING = st.dictionaries(HOSTS, st.integers(0, 20))
SOME_RULES = st.builds(
    YieldRules, min_runtime_s=st.floats(0.1, 1000), min_rate=st.floats(0, 1e5), host_quota=st.integers(1, 12)
)


@settings(max_examples=300, deadline=None)
@given(RUNNING, WAITING, SOME_RULES, st.lists(RATES, max_size=5), st.integers(0, 5))
def test_the_choice_is_bounded_and_does_not_depend_on_order(
    running: list[RunningTransfer], waiting: dict[str, int], rules: YieldRules, recent: list[float], pending: int
) -> None:
    found = choose_yields(running, waiting, rules, recent=recent, pending=pending)
    assert found == choose_yields(running[::-1], waiting, rules, recent=recent[::-1], pending=pending)
    assert len(found) == len({one.lease_id for one in found}) <= max(0, sum(waiting.values()) - pending)
    of = {one.lease_id: one for one in running}
    counts = Counter(one.host for one in running)
    for one in (of[found_one.lease_id] for found_one in found):
        assert (
            one.age_s >= min_runtime_s(min(SHARE_MIN_RUNTIME_S, rules.min_runtime_s), one.yields)
            and one.is_moving
            and one.remaining != 0
        )
    for reason in (FAR_BELOW, SLOW):
        for one in (of[found_one.lease_id] for found_one in found if found_one.reason == reason):
            assert one.age_s >= min_runtime_s(rules.min_runtime_s, one.yields)
    over = Counter(of[one.lease_id].host for one in found if one.reason == HOST_SHARE)
    assert all(counts[host] - left >= rules.host_quota for host, left in over.items()), "its part stays"
    assert not found or may_yield(running, rules, recent=recent)


@settings(max_examples=300, deadline=None)
@given(RUNNING, WAITING, SOME_RULES)
def test_the_fastest_stays_unless_its_host_has_more_than_its_part(
    running: list[RunningTransfer], waiting: dict[str, int], rules: YieldRules
) -> None:
    found = {one.lease_id: one.reason for one in choose_yields(running, waiting, rules)}
    for one in running:
        if one.rate >= max(rules.min_rate, *(other.rate for other in running)):
            assert found.get(one.lease_id) in (None, HOST_SHARE)


@pytest.mark.parametrize("needed_s", [1, 25, 70, 3600, 86_400])
def test_a_job_that_restarts_each_time_ends_after_few_attempts(needed_s: int) -> None:
    """It yields as soon as it may, however many wait, and keeps nothing."""
    yields, spent_s = 0, 0.0
    one = RunningTransfer("0", "a", 1500.0, 0.0, remaining=1500 * needed_s, is_resumable=False)
    while min_runtime_s(RULES.min_runtime_s, yields) < needed_s:
        age_s = min_runtime_s(RULES.min_runtime_s, yields)
        left = int(1500 * (needed_s - age_s))
        if not choose_yields([replace(one, age_s=age_s, yields=yields, remaining=left)], {"w": 10**6}, RULES):
            break
        spent_s += age_s
        yields += 1
    assert yields <= 13 and spent_s < 2 * needed_s


# --- who applies them ---


class Desk:
    """A controller, with a table of jobs whose progress is said."""

    def __init__(self, capacity: int = 3, **supervisor: Any) -> None:
        given = Settings()
        supervisor = {"host_share": 1.0, "yield_after": 20.0, **supervisor}
        self.settings = replace(given, supervisor=replace(given.supervisor, **supervisor))
        self.clock, self.in_flight, self.collector = (
            Clock(1000.0),
            InFlightTable(0.75),
            MetricsCollector(Metrics((1.0,))),
        )
        self.in_flight.set_capacity(capacity)
        self.asked = 0
        self.told: list[tuple[str, str]] = []
        self.controller = YieldController(
            self.settings, self.in_flight, self.collector, self._tell, self._ask, self.clock
        )

    def _ask(self) -> None:
        self.asked += 1

    def _tell(self, lease_id: str, reason: str) -> None:
        held = self.in_flight.get(lease_id)
        assert held is not None
        held.yield_reason = reason
        self.told.append((lease_id, reason))

    def run(self, *names: str, host: str = "h", **fields: Any) -> list[InFlightJob]:
        made = []
        for name in names:
            claimed = job_of(name, **fields)
            job = PushedJob.parse(claimed.raw)
            held = InFlightJob(claimed, 0.0, job, authority=host, worker_pid=7, assigned_at=self.clock.now)
            held.phase = InFlightPhase.RUNNING
            assert self.in_flight.add(held)
            made.append(held)
        return made

    def pass_time(self, seconds: int, rates: dict[str, int]) -> None:
        """So many turns, in which jobs receive bytes."""
        for _ in range(seconds):
            self.clock.now += 1.0
            for name, rate in rates.items():
                held = self.in_flight.get(f"{name}.1")
                assert held is not None
                done = held.progress.get("done", 0) + rate
                held.progress = {"done": done, "size": 10**9, "phase": "downloading", "connections": 1}
            self.controller.tick()


def test_who_waits_is_asked_for_when_a_transfer_may_yield_and_the_answer_is_used_once() -> None:
    desk = Desk()
    one, *_ = desk.run("a", "b", "c")
    rates = {"a": 1400, "b": 1500, "c": 1600}
    desk.pass_time(19, rates)
    assert (desk.asked, desk.told) == (0, [])
    desk.pass_time(2, rates)
    assert (desk.asked, desk.told) == (2, []), "no job is known to wait"
    desk.controller.handle_waiting({"w": 1})
    assert desk.told == [("a.1", "slow")], "at once"
    desk.pass_time(5, rates)
    assert len(desk.told) == 1
    desk.controller.handle_waiting({"w": 1})
    desk.pass_time(1, rates)
    assert len(desk.told) == 1, "that one was told, and has not gone yet"
    desk.in_flight.set_phase(one, InFlightPhase.RECORDING)
    desk.controller.handle_waiting({"w": 1})
    desk.pass_time(1, rates)
    assert len(desk.told) == 1, "there is room"


def test_an_old_answer_is_not_used() -> None:
    desk = Desk()
    desk.run("a", "b", "c")
    desk.controller._waiting, desk.controller._answered_at = {"w": 9}, desk.clock.now
    desk.clock.now += ANSWER_VALID_S + 20
    desk.pass_time(3, {"a": 1, "b": 1, "c": 1})
    assert desk.asked and not desk.told


@pytest.mark.parametrize(
    ("supervisor", "job", "capacity", "expected"),
    [
        ({}, {}, 2, ["a.1", "b.1"]),
        ({"yield_after": 0.0}, {}, 2, []),
        ({"yield_after": 60.0}, {}, 2, []),
        ({"slow_rate": 1000}, {}, 2, []),
        ({"slow_rate": 0}, {}, 2, []),
        ({"node_rate": 5000}, {}, 2, []),
        ({}, {"limit_rate": 2048}, 2, []),
        ({}, {"limit_rate": 200_000}, 2, ["a.1", "b.1"]),
        ({}, {}, 3, []),  # a slot is free
        ({}, {}, 1, []),  # fewer slots than before: one that goes makes no room
        ({}, {}, 0, []),  # the node ends
    ],
)
def test_settings_limits_and_slots_decide(
    supervisor: dict[str, Any], job: dict[str, Any], capacity: int, expected: list[str]
) -> None:
    desk = Desk(capacity, **supervisor)
    desk.run("a", "b", **job)
    desk.pass_time(29, {"a": 1400, "b": 1500})
    desk.controller.handle_waiting({"w": 9})
    desk.pass_time(1, {"a": 1400, "b": 1500})
    assert [lease_id for lease_id, _ in desk.told] == expected


def test_a_host_with_more_than_its_part_gives_back_what_is_too_much() -> None:
    desk = Desk(4)
    desk.run("a", "b", "c", "d")
    desk.controller.apply(replace(desk.settings, supervisor=replace(desk.settings.supervisor, host_share=0.5)))
    desk.pass_time(6, {"a": 10**6, "b": 10**6, "c": 2 * 10**6, "d": 3 * 10**6})
    desk.controller.handle_waiting({"w": 9})
    desk.pass_time(1, dict.fromkeys("abcd", 10**6))
    assert desk.told == [("a.1", "host_share"), ("b.1", "host_share")]


def test_a_host_counts_as_slow_for_a_while_after_a_transfer_of_it_had_to_yield() -> None:
    desk = Desk(2)
    desk.run("a", host="slow")
    desk.run("b", host="fast")
    rates = {"a": 1500, "b": 10**6}
    desk.pass_time(25, rates)
    assert list(desk.in_flight.slow_hosts) == []
    desk.controller.handle_waiting({"w": 1})
    assert desk.told == [("a.1", "slow")] and list(desk.in_flight.slow_hosts) == ["slow"]
    desk.in_flight.remove("a.1")
    desk.run("c", host="slower")
    desk.pass_time(25, {"b": 10**6, "c": 1500})
    desk.controller.handle_waiting({"slow": 9})
    assert len(desk.told) == 1, "none yields to jobs of hosts that are slow themselves"
    desk.controller.handle_waiting({"slow": 9, "w": 1})
    assert desk.told[1:] == [("c.1", "slow")] and list(desk.in_flight.slow_hosts) == ["slow", "slower"]
    desk.in_flight.remove("c.1")
    desk.run("d", host="slower")
    desk.pass_time(5, {"d": 10**6})
    assert list(desk.in_flight.slow_hosts) == ["slow", "slower"], "a burst says nothing"
    desk.pass_time(1, {"d": 10**6})
    assert list(desk.in_flight.slow_hosts) == ["slow"], "it is no longer"
    desk.clock.now += SLOW_S
    desk.controller.tick()
    assert list(desk.in_flight.slow_hosts) == []


def test_no_more_slow_hosts_are_remembered_than_a_claim_can_name() -> None:
    desk = Desk()
    for number in range(MAX_SLOW_HOSTS + 5):
        desk.controller._mark_slow(f"h{number}")
    desk.controller._mark_slow("h6")
    assert len(desk.in_flight.slow_hosts) == MAX_SLOW_HOSTS and desk.in_flight.slow_hosts[-2:] == (
        f"h{MAX_SLOW_HOSTS + 4}",
        "h6",
    )
    assert "h4" not in desk.in_flight.slow_hosts


@pytest.mark.parametrize(("rate", "is_so"), [(7999, False), (8000, True), (89_000, True)])
def test_a_fair_transfer_is_not_far_below_others(rate: float, is_so: bool) -> None:
    one = RunningTransfer("0", "a", rate, 25.0)
    assert is_fast_enough(one, [one], RULES) == is_so
    assert not is_fast_enough(one, [one], RULES, [900_000.0] * 3)


def test_a_job_that_waits_for_our_disk_or_an_operator_stays() -> None:
    desk = Desk(3)
    one, other, _ = desk.run("a", "b", "c")
    desk.pass_time(30, {"c": 1500})
    one.progress, other.requested_action = {"done": 5, "size": 9, "phase": "verifying"}, "pause"
    desk.controller.handle_waiting({"w": 9})
    desk.pass_time(1, {"c": 1500})
    assert desk.told == [("c.1", "slow")]


def test_a_job_whose_server_has_not_answered_is_as_slow_as_can_be() -> None:
    desk = Desk(1)
    desk.run("a")
    desk.pass_time(25, {})
    desk.controller.handle_waiting({"w": 9})
    desk.pass_time(1, {})
    assert desk.told == [("a.1", "slow")]


def test_the_speeds_of_the_last_downloads_are_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("dlpool.service.monitor.metrics_collector.time.monotonic", lambda: now[0])
    collector = MetricsCollector(Metrics((1.0,)))
    for received in (1000, 65536, 131072):
        collector.observe_run(
            EndedFrame("a.1", AttemptResult.SUCCEEDED, statistics={"received": received, "seconds": 2.0}), 2.0
        )
    assert collector.recent_speeds() == [32768, 65536]
    for _ in range(RECENT):
        collector.observe_run(
            EndedFrame("a.1", AttemptResult.SUCCEEDED, statistics={"received": 200_000, "seconds": 2.0}), 2.0
        )
    assert collector.recent_speeds() == [100_000] * RECENT
    now[0] += RECENT_S
    assert collector.recent_speeds() == []


# --- on its way through the dispatcher ---


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def yielding(bench: Bench, **fields: Any) -> tuple[InFlightJob, Worker]:
    worker = bench.worker()
    held = bench.held("a", worker, **fields)
    bench.dispatcher.yield_slot("a.1", "slow")
    bench.dispatcher.yield_slot("a.1", "far_below")
    assert worker.heard() == [CancelFrame("a.1", "the job yields its slot to waiting jobs")], "it is told once"
    return held, worker


ENDINGS: dict[str, tuple[EndedFrame, str, str]] = {
    "released": (EndedFrame("a.1", AttemptResult.RELEASED, label="cancelled", message="m"), "yield", "slow"),
    "had succeeded": (
        EndedFrame("a.1", AttemptResult.SUCCEEDED, "/data/a", {"size": 1, "seconds": 1.0, "received": 1}),
        "success",
        "",
    ),
    "had failed": (EndedFrame("a.1", AttemptResult.FAILED, label="http", message="m"), "failed", "http"),
    "has to be tried again": (EndedFrame("a.1", AttemptResult.RETRY, label="reset", message="m"), "retry", "reset"),
    "met a fault": (EndedFrame("a.1", AttemptResult.NODE_FAULT, label="disk", message="m"), "release", "disk"),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_a_job_that_was_told_to_yield_ends_as_it_ends(bench: Bench, case: str) -> None:
    _, worker = yielding(bench)
    frame, outcome, label = ENDINGS[case]
    worker.say(frame)
    bench.dispatcher.read_frames(worker.handle)
    assert (bench.last().disposition, bench.last().note.get("label", "")) == (outcome, label)


@pytest.mark.parametrize(("yields", "delay_s"), [(0, 5), (1, 10), (3, 40), (20, 900), (10**6, 900)])
def test_a_job_that_yields_waits_longer_each_time(bench: Bench, yields: int, delay_s: float) -> None:
    held, worker = yielding(bench)
    held.claimed = replace(held.claimed, yields=yields)
    worker.say(EndedFrame("a.1", AttemptResult.RELEASED, label="cancelled", message="m"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.last() == FinishRequest(
        held.lease, Disposition.YIELD, note={"label": "slow", "message": "m"}, delay_s=delay_s, trace_id=held.trace_id
    )


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_an_operator_goes_before_those_that_wait(bench: Bench, action: str) -> None:
    _, worker = yielding(bench)
    bench.dispatcher.request_stop("a.1", action)
    worker.say(EndedFrame("a.1", AttemptResult.RELEASED, label="cancelled", message="m"))
    bench.dispatcher.read_frames(worker.handle)
    assert bench.last().disposition == {"pause": "pause", "cancel": "cancelled"}[action]


def test_a_job_without_a_slot_does_not_yield(bench: Bench) -> None:
    held = bench.held("a")
    bench.dispatcher.yield_slot("a.1", "slow")
    bench.dispatcher.yield_slot("gone.1", "slow")
    assert held.yield_reason is None and bench.told.ended == []


def test_the_death_of_its_worker_counts_although_it_was_told_to_yield(bench: Bench) -> None:
    _, worker = yielding(bench)
    bench.dispatcher.reap(worker.handle, "killed")
    assert bench.last().disposition == "crash"


def test_a_worker_reports_which_jobs_cannot_be_resumed(bench: Bench) -> None:
    worker = bench.worker()
    one, other = bench.held("a", worker), bench.held("b", worker, url=URL)
    progress = {"done": 1, "size": 2, "phase": "downloading", "connections": 1}
    worker.say(StatusFrame({"a.1": progress, "b.1": progress}, {}, unresumable=["b.1"]))
    bench.dispatcher.read_frames(worker.handle)
    assert (one.is_resumable, other.is_resumable) == (True, False)
