"""Test metrics, health and surveys of a supervisor, without threads."""

from __future__ import annotations

import errno
import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.config import MetricsSettings, PathSettings, Settings
from dlpool.errors import QueueAway
from dlpool.freespace import Space
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest, JobLease, OldestWaiting
from dlpool.observe.health import Health, HealthCheck
from dlpool.observe.http_server import ProbeRequest
from dlpool.observe.metrics import MIB, Metrics
from dlpool.service.inflight import InFlightPhase
from dlpool.service.monitor import surveys
from dlpool.service.monitor.metrics_collector import ByteRate, MetricsCollector
from dlpool.service.monitor.monitor import (
    Monitor,
    MonitoredNode,
    NodeStatus,
    http_routes,
    in_flight_state,
    worker_state,
)
from dlpool.service.monitor.surveys import DiskSurvey, IntakeAge, QueueSurvey, SurveyThread, size_and_free
from dlpool.service.queue.redis_state import RedisState
from dlpool.service.wire.counters import LOG_DROPPED, RANGE_BOUNDS_S, RANGE_SECONDS, RECEIVED
from dlpool.service.wire.frames import EndedFrame
from dlpool.service.wire.results import AttemptResult
from tests.bench import Bench
from tests.fakes import Clock, Lines


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return the value of a metric, None if it has no such series."""
    found: float | None = metrics._registry.get_sample_value(f"dlpool_{name}", labels)
    return found


# --- metrics collector ---


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(RANGE_BOUNDS_S)


@pytest.fixture
def collector(metrics: Metrics) -> MetricsCollector:
    return MetricsCollector(metrics)


@pytest.mark.parametrize(
    ("outcome", "reply", "counter", "labels"),
    [
        ("success", "OK", "jobs_total", {"outcome": "success", "label": "why"}),
        ("failed", "OK", "jobs_total", {"outcome": "failed", "label": "why"}),
        ("cancelled", "OK", "jobs_total", {"outcome": "cancelled", "label": "why"}),
        ("retry", "OK", "requeued_jobs_total", {"disposition": "retry", "label": "why"}),
        ("release", "OK", "requeued_jobs_total", {"disposition": "release", "label": "why"}),
        ("success", "FENCED", "requeued_jobs_total", {"disposition": "fenced", "label": ""}),
        ("retry", "GONE", "requeued_jobs_total", {"disposition": "fenced", "label": ""}),
    ],
)
def test_each_end_of_a_job_is_counted_once_by_its_outcome_and_label(
    outcome: str, reply: str, counter: str, labels: dict[str, str], collector: MetricsCollector, metrics: Metrics
) -> None:
    collector.count_result(FinishRequest(JobLease("a", 1), Disposition(outcome), note={"label": "why"}), reply)
    assert value(metrics, counter, **labels) == 1
    counted = [
        sample
        for family in metrics._registry.collect()
        for sample in family.samples
        if sample.name in ("dlpool_jobs_total", "dlpool_requeued_jobs_total") and sample.value
    ]
    assert len(counted) == 1


def test_a_result_without_a_label_and_a_lost_job_are_counted(collector: MetricsCollector, metrics: Metrics) -> None:
    collector.count_result(FinishRequest(JobLease("a", 1), Disposition.SUCCEED), "OK")
    collector.count_lost()
    assert value(metrics, "jobs_total", outcome="success", label="") == 1
    assert value(metrics, "requeued_jobs_total", disposition="lost", label="") == 1


@pytest.mark.parametrize(
    ("result", "count", "total"),
    [
        ({"received": MIB, "seconds": 2.0}, 1, MIB / 2),
        ({"received": MIB - 1, "seconds": 2.0}, 0, 0),
        ({"received": MIB, "seconds": 0.0}, 0, 0),
        ({"received": MIB}, 0, 0),
        ({"seconds": 2.0}, 0, 0),
    ],
)
def test_the_speed_of_a_job_counts_from_a_mebibyte_on(
    result: dict[str, Any], count: int, total: float, collector: MetricsCollector, metrics: Metrics
) -> None:
    collector.observe_run(EndedFrame("a.1", AttemptResult.SUCCEEDED, None, result), 3.0)
    assert value(metrics, "job_seconds_sum", attempt_result="succeeded") == 3.0
    assert value(metrics, "job_seconds_count", attempt_result="succeeded") == 1
    assert value(metrics, "job_speed_bytes_per_second_count") == count
    assert value(metrics, "job_speed_bytes_per_second_sum") == total


def test_what_workers_count_is_added_up(collector: MetricsCollector, metrics: Metrics) -> None:
    collector.add_worker_counters({RECEIVED: 100, LOG_DROPPED: 2, "retry.timeout": 3, "retry.stall": 1})
    collector.add_worker_counters({RECEIVED: 50, RANGE_SECONDS: 4.5, "range.0": 2, f"range.{len(RANGE_BOUNDS_S)}": 1})
    collector.add_worker_counters({})
    assert collector.received_bytes == value(metrics, "received_bytes_total") == 150
    assert value(metrics, "log_dropped_records_total") == 2
    assert value(metrics, "range_retries_total", reason="timeout") == 3
    assert value(metrics, "range_retries_total", reason="stall") == 1
    assert value(metrics, "range_seconds_count") == 3
    assert value(metrics, "range_seconds_sum") == 4.5
    assert value(metrics, "range_seconds_bucket", le=str(RANGE_BOUNDS_S[0])) == 2


def test_what_the_log_of_the_supervisor_lost_is_counted_once(collector: MetricsCollector, metrics: Metrics) -> None:
    for total, counted in ((0, 0), (3, 3), (3, 3), (5, 5), (9, 9)):
        collector.set_log_dropped(total)
        assert value(metrics, "log_dropped_records_total") == counted


def test_the_speed_is_that_of_the_last_ten_seconds() -> None:
    clock = Clock()
    speed = ByteRate(clock)
    assert speed.update(1000) == 0
    assert speed.update(2000) == 0, "no time has passed"
    shown = []
    for total in (2000, 3000, 3000):
        clock.now += 4
        shown.append(speed.update(total))
    assert shown == [250, 250, 83], "of 12 s, as nothing is known of the tenth"
    clock.now += 6
    assert speed.update(4300) == 130


def test_the_speed_after_a_pause_is_that_since_the_last_time_it_was_asked_for() -> None:
    clock = Clock()
    speed = ByteRate(clock)
    for pause_s, total, expected in ((0, 0, 0), (10, 1000, 100), (20, 3000, 100), (40, 3000, 0), (10, 4000, 100)):
        clock.now += pause_s
        assert speed.update(total) == expected


def test_the_speed_of_the_node_is_that_of_the_bytes_of_its_workers(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr("dlpool.service.monitor.metrics_collector.time", clock)
    collector = MetricsCollector(metrics)
    assert collector.receive_rate() == 0
    collector.add_worker_counters({RECEIVED: 500})
    clock.now += 5
    assert collector.receive_rate() == 100


# --- once a second ---


SEEN = NodeStatus(is_draining=False, fault_s=None, low=(), slots=4, limited_hosts=0)


class Watched:
    """A monitor over the parts of a bench; ``log.dropped`` is the number of lost log records."""

    def __init__(self, folder: Path) -> None:
        self.bench = Bench(folder)
        settings = replace(self.bench.settings, metrics=MetricsSettings(listen=""))
        self.lines = Lines()
        link_log: Any = self.lines
        self.redis_state = RedisState(link_log, lambda: None, lambda _kind: None)
        self.redis_state.registered.set()
        self.log = SimpleNamespace(dropped=0, logger=lambda _name: self.lines)
        log: Any = self.log
        transitions: Any = SimpleNamespace(client=None, keys=QueueKeys())
        self.monitor = Monitor(
            settings,
            MonitoredNode(
                "n1",
                folder,
                log,
                self.bench.metrics,
                self.bench.in_flight,
                self.bench.pool,
                self.redis_state,
                transitions,
                lambda: "fifo",
            ),
        )

    def look(self, **seen: Any) -> dict[str, str]:
        """Sample, and return the problem of each failing check."""
        self.monitor.sample(replace(SEEN, **seen))
        return {check.name: check.problem for check in self.monitor.health.readiness() if check.problem}

    def value(self, name: str, **labels: str) -> float | None:
        return value(self.bench.metrics, name, **labels)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    watched = Watched(tmp_path)
    watched.bench.worker()
    return watched


def test_a_node_that_takes_jobs_is_ready(watched: Watched) -> None:
    assert watched.look() == {}
    assert {name: watched.value(name) for name in ("ready", "redis_up", "node_fault", "low_on_space")} == {
        "ready": 1,
        "redis_up": 1,
        "node_fault": 0,
        "low_on_space": 0,
    }
    names = [check.name for check in watched.monitor.health.readiness()]
    assert names == ["loop", "redis", "workers", "disk", "space", "accepting"]


@pytest.mark.parametrize(
    ("seen", "name", "problem", "gauge"),
    [
        ({"fault_s": 12.4}, "disk", "full or broken: no jobs until a write succeeds, tried in 12 s", "node_fault"),
        ({"low": ["/a", "/b"]}, "space", "less than min_free is left for /a, /b", "low_on_space"),
        ({"is_draining": True}, "accepting", "the service is stopping", None),
    ],
)
def test_why_a_node_is_not_ready_is_said(
    seen: dict[str, Any], name: str, problem: str, gauge: str | None, watched: Watched
) -> None:
    assert watched.look(**seen) == {name: problem}
    assert watched.value("ready") == 0
    assert gauge is None or watched.value(gauge) == 1


def test_a_node_without_redis_or_its_place_there_is_not_ready(watched: Watched) -> None:
    watched.redis_state.registered.clear()
    assert watched.look() == {"redis": "this node is not registered there"}
    assert (watched.value("ready"), watched.value("redis_up")) == (0, 0)
    watched.redis_state.report_failure(QueueAway("it is away"))
    assert watched.look() == {"redis": "it is away"}
    watched.redis_state.registered.set()
    watched.look()
    assert watched.value("redis_up") == 0


def test_a_node_without_workers_is_not_ready(watched: Watched) -> None:
    watched.bench.pool.workers.clear()
    assert watched.look() == {"workers": "no worker process is ready"}
    assert (watched.value("workers_resident_bytes"), watched.value("worker_resident_bytes_max")) == (0, 0)


def test_workers_jobs_and_connections_are_counted_by_state(watched: Watched) -> None:
    bench = watched.bench
    first = bench.worker()
    bench.worker(is_ready=False)
    bench.held("runs", first).progress = {"connections": 3}
    bench.held("too", first).progress = {"connections": 4}
    bench.held("new", first)
    bench.held("waits").progress = {"connections": 100}
    ending = bench.held("ends", first)
    ending.progress = {"connections": 100}
    bench.in_flight.set_phase(ending, InFlightPhase.RECORDING)
    for size, handle in enumerate(bench.pool.workers.values(), 1):
        handle.resident_bytes = size * 10
    watched.log.dropped = 7
    watched.look(slots=9, limited_hosts=2)
    assert {state: watched.value("workers", state=state) for state in ("starting", "idle", "busy", "exiting")} == {
        "starting": 1,
        "idle": 1,
        "busy": 1,
        "exiting": 0,
    }
    assert {state: watched.value("in_flight_jobs", state=state) for state in ("waiting", "running", "recording")} == {
        "waiting": 1,
        "running": 3,
        "recording": 1,
    }
    assert watched.value("connections") == 7
    assert (watched.value("slots"), watched.value("limited_hosts")) == (9, 2)
    assert (watched.value("workers_resident_bytes"), watched.value("worker_resident_bytes_max")) == (60, 30)
    assert watched.value("log_dropped_records_total") == 7


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ({}, "idle"),
        ({"jobs": {"a.1"}}, "busy"),
        ({"jobs": {"a.1"}, "is_retiring": True}, "retiring"),
        ({"is_retiring": True}, "retiring"),
        ({"jobs": {"a.1"}, "is_ready": False}, "starting"),
        ({"kill_reason": "memory"}, "exiting"),
        ({"has_exited": True, "is_ready": False}, "exiting"),
    ],
)
def test_the_state_of_a_worker(fields: dict[str, Any], state: str) -> None:
    usual = {"kill_reason": "", "has_exited": False, "is_ready": True, "is_retiring": False, "jobs": set()}
    handle: Any = SimpleNamespace(**(usual | fields))
    assert worker_state(handle) == state


@pytest.mark.parametrize(
    ("is_recording", "worker", "state"),
    [(False, None, "waiting"), (False, 5, "running"), (True, 5, "recording"), (True, None, "recording")],
)
def test_the_state_of_a_job(is_recording: bool, worker: int | None, state: str) -> None:
    held: Any = SimpleNamespace(is_recording=is_recording, worker_pid=worker)
    assert in_flight_state(held) == state


def test_reloaded_settings_change_the_address_and_the_folders(watched: Watched) -> None:
    assert not watched.monitor._is_on()
    new = Settings(
        metrics=MetricsSettings(listen="127.0.0.1:1"),
        paths=PathSettings(download_dir="/d", state_dir="/s", log_dir="/l"),
    )
    watched.monitor.apply(new)
    assert watched.monitor._is_on() and watched.monitor._server.address == "127.0.0.1:1"
    assert watched.monitor._folders() == ["/d", "/l", "/s"]


def test_the_threads_are_named_and_end_with_the_service(watched: Watched) -> None:
    names = {"http", "survey-queue", "survey-disk"}
    threads = watched.monitor._threads
    assert {thread.name for thread in threads} == names and all(thread.daemon for thread in threads)
    watched.monitor.start()
    watched.redis_state.stopping.set()
    watched.monitor.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


# --- what is answered ---


def request_of(*options: str) -> ProbeRequest:
    return ProbeRequest(frozenset(options), "text/plain")


@pytest.mark.parametrize(
    ("path", "options", "problem", "status", "body"),
    [
        ("/livez", (), "bad", 200, "ok\n"),
        ("/livez", ("verbose",), "bad", 200, "[+]loop ok\nok\n"),
        ("/readyz", (), "", 200, "ok\n"),
        ("/readyz", ("verbose",), "", 200, "[+]loop ok\n[+]x ok\nok\n"),
        ("/readyz", (), "bad", 503, "[-]x failed: bad\nnot ok\n"),
    ],
)
def test_probes(path: str, options: tuple[str, ...], problem: str, status: int, body: str, metrics: Metrics) -> None:
    health = Health(Clock())
    health.update([HealthCheck("x", problem)])
    reply = http_routes(metrics, health, "n1")[path](request_of(*options))
    assert (reply.status, reply.body.decode()) == (status, body)


def test_the_version_and_the_metrics_are_told(metrics: Metrics) -> None:
    answers = http_routes(metrics, Health(), "n1")
    reply = answers["/version"](request_of())
    assert json.loads(reply.body)["node"] == "n1" and reply.body.endswith(b"\n")
    assert b"dlpool_ready 0.0\n" in answers["/metrics"](request_of()).body


# --- surveys ---


class Stopping:
    """An event that is set after a number of waits, and records their durations."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return len(self.waits) >= self.after

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.mark.parametrize(
    ("wanted", "looks", "warnings"), [((True, True, True), 3, 0), ((False, True, False), 1, 0), ((True, False), 1, 0)]
)
def test_a_survey_looks_while_it_is_wanted(wanted: tuple[bool, ...], looks: int, warnings: int) -> None:
    stopping: Any = Stopping(len(wanted))
    asked, looked, lines = iter(wanted), [0], Lines()
    log: Any = lines

    def look() -> None:
        looked[0] += 1

    SurveyThread(look, lambda: next(asked), stopping, log).serve()
    assert (looked[0], len(lines.kept)) == (looks, warnings)
    assert stopping.waits == [surveys.SURVEY_S] * len(wanted)


def test_a_survey_that_fails_is_told_and_goes_on() -> None:
    stopping: Any = Stopping(2)
    lines = Lines()
    log: Any = lines

    def fail() -> None:
        raise ValueError("odd")

    SurveyThread(fail, lambda: True, stopping, log).serve()
    assert [(line.level, line.event, str(line.fields["error"])) for line in lines.kept] == [
        ("warning", "survey_failed", "odd")
    ] * 2


@pytest.mark.parametrize(
    ("is_fifo", "looks"),
    [
        (True, [("a", 3, 100, 0), ("a", 3, 103, 3), ("a", 4, 104, 4), ("a", 3, 105, 0), ("a", 3, 109, 4)]),
        (False, [("a", 3, 100, 0), ("a", 2, 103, 3), ("b", 2, 105, 0), ("b", 1, 109, 4)]),
        (True, [("", 0, 100, 0), ("", 0, 105, 0), ("a", 1, 106, 0), ("a", 1, 108, 2)]),
    ],
)
def test_the_age_of_the_oldest_job_begins_when_it_is_first_seen(
    is_fifo: bool, looks: list[tuple[str, int, float, float]]
) -> None:
    oldest = IntakeAge()
    for mark, length, now, age in looks:
        seen = OldestWaiting(length, mark, 0.0)
        assert oldest.sample(seen, now, is_fifo=is_fifo) == age


class Queue:
    """A survey of a fake queue with given answers."""

    def __init__(self, metrics: Metrics) -> None:
        self.failures: list[str] = []
        self.lines = Lines()
        log: Any = self.lines
        self.redis_state = RedisState(log, lambda: None, self.failures.append)
        self.clock = Clock()
        self.error: Exception | None = None
        self.oldest = OldestWaiting(1, "m", 8.0)
        transitions: Any = SimpleNamespace(client=None, keys=QueueKeys(), oldest_waiting=self._oldest)
        self.survey = QueueSurvey(transitions, metrics, self.redis_state, lambda: "fifo", self.clock)
        self.survey._views = SimpleNamespace(stats=self._stats)  # type: ignore[assignment]

    def _oldest(self) -> OldestWaiting:
        if self.error is not None:
            raise self.error
        return self.oldest

    def _stats(self) -> Any:
        return SimpleNamespace(
            backlog=1,
            reserved=2,
            ready={"high": 3, "low": 4},
            delayed=5,
            throttled=6,
            paused=7,
            running=8,
            waiting_hosts=["a"],
            held_hosts=["b", "c"],
            failure_records=9,
            supervisors=["s"] * 10,
            is_halted=True,
        )


def test_the_figures_of_the_queue_are_shown(metrics: Metrics) -> None:
    queue = Queue(metrics)
    queue.survey.sample()
    queue.clock.now += 5
    queue.survey.sample()
    states = ("intake", "reserved", "ready_high", "ready_low", "delayed", "throttled", "paused", "running")
    assert [value(metrics, "queue_jobs", state=state) for state in states] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert value(metrics, "queue_oldest_seconds", list="intake") == 5
    assert value(metrics, "queue_oldest_seconds", list="ready") == 8
    assert [value(metrics, "queue_hosts", state=state) for state in ("waiting", "held")] == [1, 2]
    singles = ("queue_failure_records", "queue_supervisors", "queue_paused")
    assert [value(metrics, name) for name in singles] == [9, 10, 1]


@pytest.mark.parametrize("is_known", [False, True])
def test_the_figures_of_a_queue_that_is_away_are_forgotten(is_known: bool, metrics: Metrics) -> None:
    queue = Queue(metrics)
    queue.survey.sample()
    if is_known:
        queue.redis_state.report_failure(QueueAway("away"))
        queue.failures.clear()
    else:
        queue.error = QueueAway("away")
    queue.survey.sample()
    assert value(metrics, "queue_jobs", state="intake") is None
    assert math.isnan(value(metrics, "queue_paused") or 0.0)
    assert queue.failures == ([] if is_known else ["unavailable"])
    assert (queue.redis_state.error is not None) == is_known, "others say that it is away"


@pytest.mark.parametrize(
    ("answer", "room"),
    [
        (lambda: Space(100, 40), (100.0, 40.0)),
        (lambda: None, (math.nan, math.nan)),
    ],
)
def test_the_room_of_a_folder(
    answer: Callable[[], Space | None], room: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveys, "space_of", lambda _folder: answer())
    assert size_and_free(Path("/x")) == pytest.approx(room, nan_ok=True)


def test_a_folder_that_cannot_be_asked_has_no_figures_and_a_missing_one_its_parents(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics, tmp_path: Path
) -> None:
    asked: list[str] = []

    def space_of(folder: Path) -> Space:
        asked.append(str(folder))
        if folder.name == "missing":
            raise FileNotFoundError
        if folder.name == "broken":
            raise OSError(errno.EIO, "broken")
        return Space(10, 5)

    monkeypatch.setattr(surveys, "space_of", space_of)
    DiskSurvey(lambda: ["/a/missing", "/broken"], tmp_path / "none", metrics).sample()
    assert asked == ["/a/missing", "/a", "/broken"]
    assert value(metrics, "disk_size_bytes", folder="/a/missing") == 10
    assert value(metrics, "disk_free_bytes", folder="/a/missing") == 5
    assert math.isnan(value(metrics, "disk_free_bytes", folder="/broken") or 0.0)
    assert math.isnan(value(metrics, "spooled_results") or 0.0)


def test_a_survey_that_is_stopped_before_it_began_looks_at_nothing() -> None:
    stopping = threading.Event()
    stopping.set()
    log: Any = Lines()
    SurveyThread(lambda: pytest.fail("last_recovery"), lambda: True, stopping, log).serve()
