"""The main loop of a supervisor: its turns, signals, readiness and end; its parts are played."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dlpool.config import LoggingSettings, PathSettings, Settings
from dlpool.errors import ConfigurationError
from dlpool.service import supervisor as supervisor_module
from dlpool.service.inflight import InFlightTable
from dlpool.service.monitor.monitor import NodeStatus
from dlpool.service.queue.messages import (
    FenceChecked,
    HostHeld,
    HostSlotAnswered,
    JobsClaimed,
    JobsTakenBack,
    LeaseLost,
    ResultRecorded,
    StaleFilesFound,
    StateChanged,
    StopRequested,
)
from dlpool.service.supervisor import CANCEL_S, EXTEND_S, FLUSH_S, RECONCILE_S, TICK_S, TURN_S, Supervisor
from dlpool.service.wire.frames import ConfigFrame, SpaceFrame
from tests.bench import Worker, job_of
from tests.fakes import Clock, Lines
from tests.test_pool import Pooled


class Calls:
    """Anything that is called: the calls are kept by name, and ``answers`` has what they return."""

    def __init__(self, calls: list[tuple[Any, ...]], name: str, **fields: Any) -> None:
        self._calls, self._name = calls, name
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*given: Any, **options: Any) -> None:
            self._calls.append((f"{self._name}.{name}", *given, *options.items()))

        return call


class Room(Pooled):
    """A supervisor of which all parts are played but the table, the pool and the dispatcher."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, **supervisor: Any) -> None:
        super().__init__(folder, patch, **{"workers": 1, "max_concurrent_downloads": 2, **supervisor})
        for module in ("supervisor", "dispatcher"):
            patch.setattr(f"dlpool.service.{module}.time", self.clock)
        self.clock.monotonic_ns = lambda: 5_000_000  # type: ignore[attr-defined]
        patch.setattr(supervisor_module, "replace", lambda _given, **fields: fields)
        patch.setattr("dlpool.service.supervisor.signal.signal", lambda *given: self.calls.append(("signal", *given)))
        self.calls: list[tuple[Any, ...]] = []
        self.is_registered = True
        self.loaded: Any = self.settings
        self.messages: list[Any] = []
        self.is_clean = True
        registered = SimpleNamespace(is_set=lambda: self.is_registered)
        self.redis_state = SimpleNamespace(error=None, registered=registered)
        self.disk_guard: Any = Calls(
            self.calls, "disk_guard", is_low=False, low_folders=[], fault_s=None, frame=SpaceFrame(0, {})
        )
        hosts = Calls(self.calls, "hosts", limited_hosts=3)
        self.slots: Any = Calls(self.calls, "slots", level=2, hosts=hosts)
        self.ready: list[Any] = []
        components: Any = Calls(
            self.calls,
            "components",
            in_flight=self.in_flight,
            pool=self.pool,
            dispatcher=self.dispatcher,
            sid="s",
            redis_state=self.redis_state,
            disk_guard=self.disk_guard,
            slots=self.slots,
            host_admission=self.host_admission,
            cleanup=Calls(self.calls, "cleanup"),
            monitor=Calls(self.calls, "monitor"),
            hooks=Calls(self.calls, "hooks"),
            claimer=Calls(self.calls, "claimer"),
            yield_controller=Calls(self.calls, "yield_controller"),
            mailbox=SimpleNamespace(read=self._read, wake=lambda: self.calls.append(("wake",))),
            selector=SimpleNamespace(select=self._select),
            make_watchdog=lambda _: Calls(self.calls, "watchdog"),
            stop=lambda *, is_empty: self.calls.append(("components.stop", is_empty)) or self.is_clean,  # type: ignore[func-returns-value]
        )
        log: Any = Calls(self.calls, "log", path=folder / "dlpool.log", logger=lambda _name: self.lines)
        node: Any = Calls(self.calls, "node")
        self.supervisor = Supervisor(self.settings, self._load, node, log, components)
        self.notifier = self.supervisor._notifier = Calls(self.calls, "notifier")  # type: ignore[assignment]
        self.supervisor._archiver = Calls(self.calls, "archiver", settings=None)  # type: ignore[assignment]

    def _load(self) -> Settings:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        settings: Settings = self.loaded
        return settings

    def _read(self) -> list[Any]:
        read, self.messages = self.messages, []
        return read

    def _select(self, seconds: float) -> list[Any]:
        self.calls.append(("select", seconds))
        ready, self.ready = self.ready, []
        return [(SimpleNamespace(data=data), 1) for data in ready]

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call[1:] for call in self.calls if call[0] == name]

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def turn(self, seconds: float = 0.0) -> None:
        self.clock.now += seconds
        for handle in self.pool.workers.values():
            handle.last_heard_at = self.clock.now
        self.pool._checked_at = self.clock.now
        self.supervisor._turn()

    def up_worker(self) -> Worker:
        """A worker that takes the place of the one that is wanted."""
        return self.worker(2)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Room]:
    return lambda **supervisor: Room(tmp_path, monkeypatch, **supervisor)


@pytest.fixture
def room(make: Callable[..., Room]) -> Room:
    return make()


# --- reloading ---


@pytest.mark.parametrize(
    ("is_ready", "is_draining", "is_told"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_the_service_manager_is_notified_of_a_reload(
    room: Room, is_ready: bool, is_draining: bool, is_told: bool
) -> None:
    room.supervisor._is_ready = is_ready
    room.supervisor._drain_until = 9.0 if is_draining else None
    room.supervisor._handle_signal(signal.SIGHUP)
    told = [call for call in room.calls if call[0].startswith("notifier.")]
    assert told == ([("notifier.reloading", 5000), ("notifier.ready",)] if is_told else [])
    assert room.lines.events == ["signal_received", "configuration_reloaded"]


def test_reloaded_settings_reach_every_part(room: Room) -> None:
    worker = room.up_worker()
    transfer = replace(room.settings.transfer, retries=9)
    logging = LoggingSettings(level="debug")
    paths = PathSettings(download_dir="/x")
    room.loaded = replace(room.settings, transfer=transfer, logging=logging, paths=paths)
    room.supervisor._handle_signal(signal.SIGHUP)
    supervisor = room.supervisor
    assert supervisor._settings.transfer.retries == 9
    assert room.called("components.apply") == [(supervisor._settings,)]
    assert room.called("log.apply") == [(supervisor._settings.logging,)]
    assert supervisor._archiver.settings == supervisor._settings.logging
    (frame,) = worker.heard()
    assert isinstance(frame, ConfigFrame) and frame.transfer["retries"] == 9
    given: Any = room.pool.worker_settings
    assert given["transfer"].retries == 9
    assert {"transfer", "network", "paths", "logging"} <= set(given)


def test_an_invalid_file_changes_nothing(room: Room) -> None:
    worker = room.up_worker()
    before = room.supervisor._settings
    room.loaded = ConfigurationError("one\ntwo")
    room.supervisor._handle_signal(signal.SIGHUP)
    assert room.supervisor._settings is before and worker.heard() == []
    assert [(line.level, line.event, line.fields.get("reason")) for line in room.lines.kept] == [
        ("info", "signal_received", None),
        ("warning", "reload_refused", "one"),
        ("warning", "reload_refused", "two"),
    ]
    assert room.called("components.apply") == []


def test_a_setting_that_needs_a_restart_is_logged(room: Room) -> None:
    supervisor = replace(room.settings.supervisor, lease=99.0)
    room.loaded = replace(room.settings, supervisor=supervisor)
    room.supervisor._handle_signal(signal.SIGHUP)
    reasons = [(line.level, line.fields["reason"]) for line in room.lines.named("reload_incomplete")]
    assert reasons == [("warning", "[supervisor] lease takes effect at the next start")]


# --- signals ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_claims_nothing_and_releases_waiting_jobs(room: Room, number: int) -> None:
    room.in_flight.set_capacity(2)
    room.held("a")
    room.supervisor._handle_signal(number)
    assert room.supervisor._drain_until == room.clock.now + 30.0
    assert room.in_flight.free_slots() == 0 and room.last().disposition == "release"
    assert room.called("claimer.stop") == [()] and room.called("notifier.stopping") == [(EXTEND_S,)]
    assert room.lines.named("drain_started") == [("info", "drain_started", {"running": 1, "seconds": 30.0})]
    room.clock.now += 10
    room.supervisor._handle_signal(number)
    assert room.supervisor._drain_until == room.clock.now, "told again: not any longer"
    assert len(room.lines.named("drain_started")) == 1
    room.clock.now += 10
    room.supervisor._handle_signal(number)
    assert room.supervisor._drain_until == room.clock.now - 10


def test_other_signals_reopen_the_log_and_dump_the_state(room: Room) -> None:
    room.supervisor._handle_signal(signal.SIGUSR1)
    assert room.called("log.reopen") == [()] and room.lines.events == ["signal_received"]
    held = room.held("a")
    held.progress = {"done": 1}
    worker = room.up_worker()
    room.supervisor._handle_signal(signal.SIGUSR2)
    (line,) = room.lines.named("state_dumped")
    assert line.fields["in_flight"] == [{"id": "a", "worker": None, "done": 1}]
    assert line.fields["workers"] == [repr(worker.handle)]
    assert room.called("log.reopen") == [()]


def test_signals_are_queued_and_handled_in_the_next_turn(room: Room) -> None:
    room.supervisor._queue_signal(signal.SIGUSR1, None)
    room.supervisor._queue_signal(signal.SIGUSR2, None)
    assert room.called("wake") == [(), ()] and room.lines.kept == []
    room.supervisor._reconciled_at = room.clock.now
    room.dispatcher.needs_reconcile = False
    room.turn()
    assert [line.fields["signal"] for line in room.lines.named("signal_received")] == ["SIGUSR1", "SIGUSR2"]
    assert room.supervisor._reconciled_at == room.clock.now and not room.dispatcher.needs_reconcile


# --- a turn ---


def test_a_turn_handles_frames_and_messages(room: Room) -> None:
    worker = room.up_worker()
    heard: list[Any] = []
    room.dispatcher.read_frames = heard.append  # type: ignore[assignment,method-assign]
    noted: list[int] = []
    room.ready = [None, worker.handle, lambda: noted.append(1)]
    room.messages = [JobsClaimed((job_of("a"), job_of("b")), 5.0), HostHeld("h", 9.0)]
    room.turn()
    assert heard == [worker.handle] and noted == [1]
    assert room.called("select") == [(TURN_S,)] and room.called("claimer.resume") == [()]
    assert set(worker.handle.jobs) == {"a.1", "b.1"} and room.told.holds == []
    assert room.hosts.hold_remaining_s("http://h/x") == 9.0
    assert room.called("cleanup.send_requests") == [()]


def test_each_message_has_a_handler(room: Room) -> None:
    dispatcher = room.dispatcher
    taken: list[Any] = []
    dispatcher.handle_fence_check = lambda lease_id, *, is_ours: taken.append((lease_id, is_ours))  # type: ignore[method-assign]
    dispatcher.fence_off = taken.append  # type: ignore[assignment,method-assign]
    dispatcher.request_stop = lambda *given: taken.append(given)  # type: ignore[method-assign]
    messages = (
        FenceChecked("a.1", True),
        LeaseLost("b.1"),
        StopRequested("c.1", "cancel"),
        JobsTakenBack(("old",)),
        StaleFilesFound(()),
        StateChanged(),
    )
    for message in messages:
        room.supervisor._message_handlers[type(message)](message)
    assert taken == [("a.1", True), "b.1", ("c.1", "cancel")]
    assert room.calls == [("node.forget_sids", ("old",)), ("cleanup.enqueue", ()), ("components.check_threads",)]
    assert {ResultRecorded, HostSlotAnswered} <= set(room.supervisor._message_handlers)


def test_wanted_and_actual_are_compared_periodically_and_at_once_if_needed(room: Room) -> None:
    compared: list[float] = []
    supervisor = room.supervisor
    room.clock.now = 0.0
    supervisor._reconcile = lambda: compared.append(room.clock.now)  # type: ignore[method-assign]
    supervisor._reconciled_at = room.clock.now
    room.dispatcher.needs_reconcile = False
    room.turn(RECONCILE_S / 2)
    assert compared == []
    room.turn(RECONCILE_S / 2)
    assert len(compared) == 1
    supervisor._reconciled_at = room.clock.now
    room.turn()
    assert len(compared) == 1
    room.dispatcher.needs_reconcile = True
    room.turn()
    assert len(compared) == 2


def test_the_exit_of_a_process_needs_a_comparison(room: Room) -> None:
    room.supervisor._reconcile = lambda: None  # type: ignore[method-assign]
    room.dispatcher.needs_reconcile = False
    room.ready = [lambda: None]
    room.turn()
    assert room.dispatcher.needs_reconcile


def test_a_comparison_sets_the_capacity_and_says_when_the_service_is_ready(room: Room) -> None:
    room.turn()
    assert room.in_flight.free_slots() == 0 and room.called("notifier.ready") == []
    assert room.called("notifier.extend_timeout") == [(EXTEND_S,)]
    room.up()
    room.is_registered = False
    room.turn(2 * RECONCILE_S)
    assert room.in_flight.free_slots() == 2 and room.called("notifier.ready") == []
    room.is_registered = True
    for _ in range(2):
        room.turn(TICK_S)
    assert room.called("notifier.ready") == [()] and len(room.called("notifier.extend_timeout")) == 1
    assert room.lines.named("service_ready") == [("info", "service_ready", {"slots": 2})]


@pytest.mark.parametrize(
    ("fields", "capacity"),
    [
        ({}, 2),
        ({"level": 1}, 1),
        ({"level": 9}, 2),
        ({"fault_s": 5.0}, 0),
        ({"fault_s": 0.0}, 0),
        ({"is_low": True}, 0),
        ({"drain": 0.0}, 0),
    ],
)
def test_the_capacity_follows_what_the_node_can_do(room: Room, fields: dict[str, Any], capacity: int) -> None:
    room.up_worker()
    room.slots.level = fields.get("level", 2)
    room.disk_guard.fault_s = fields.get("fault_s")
    room.disk_guard.is_low = fields.get("is_low", False)
    room.supervisor._drain_until = fields.get("drain")
    assert room.supervisor._capacity() == capacity


def test_periodic_tasks_run_once_a_second(room: Room) -> None:
    room.up_worker()
    room.supervisor._is_ready = True
    tended = (
        "components.check_threads",
        "slots.sample",
        "hosts.forget_idle",
        "yield_controller.tick",
        "log.reopen",
        "log.maintain",
        "monitor.sample",
        "archiver.archive_new_logs",
        "notifier.status",
        "watchdog.check",
    )
    counts = []
    for seconds in (0.0, TICK_S / 2, TICK_S / 2):
        room.turn(seconds)
        counts.append([len(room.called(name)) for name in tended])
    assert counts == [[1] * len(tended), [1] * len(tended), [2] * len(tended)]
    assert room.called("notifier.extend_timeout") == []
    (received, busy, over) = room.called("slots.sample")[0]
    assert (list(received.values()), busy, over) == ([0], 0, ("over_memory", 0))
    room.supervisor._drain_until = room.clock.now + 99
    room.turn(TICK_S)
    assert room.called("notifier.extend_timeout") == [(EXTEND_S,)]


@pytest.mark.parametrize("is_draining", [True, False])
def test_the_monitor_gets_the_status_of_the_node(room: Room, is_draining: bool) -> None:
    room.up_worker()
    room.slots.level = 1
    room.disk_guard.low_folders = ["/x"]
    room.disk_guard.fault_s = 7.0 if is_draining else None
    room.supervisor._drain_until = 9.0 if is_draining else None
    room.supervisor._report()
    assert room.called("monitor.sample") == [(NodeStatus(is_draining, 7.0 if is_draining else None, ["/x"], 1, 3),)]


@pytest.mark.parametrize(
    ("drain", "error", "low", "state"),
    [
        (None, None, [], "working"),
        (None, None, ["/x"], "waiting for disk space"),
        (None, "away", ["/x"], "waiting for Redis"),
        (9.0, "away", ["/x"], "draining"),
    ],
)
def test_the_status_is_one_sentence(
    room: Room, drain: float | None, error: str | None, low: list[str], state: str
) -> None:
    room.supervisor._drain_until, room.redis_state.error, room.disk_guard.low_folders = drain, error, low
    assert room.supervisor._status() == f"{state}: 0 jobs, 0 workers"


# --- the end ---


def test_running_jobs_are_cancelled_once_after_the_drain_timeout(room: Room) -> None:
    worker = room.worker(1)
    room.held("a", worker)
    room.supervisor._handle_signal(signal.SIGTERM)
    room.turn(29.9)
    room.held("b")
    assert [type(frame).__name__ for frame in worker.heard()].count("CancelFrame") == 0
    for _ in range(3):
        room.turn(0.1)
    cancelled = [frame for frame in worker.heard() if type(frame).__name__ == "CancelFrame"]
    assert len(cancelled) == 1
    assert [one.lease.job_id for one in room.told.ended] == ["b"], "what was claimed meanwhile is given back"


@pytest.mark.parametrize(
    ("late_s", "is_held", "is_running", "is_away", "is_drained"),
    [
        (0.0, False, False, False, True),
        (CANCEL_S, True, True, False, False),
        (CANCEL_S + 0.1, True, True, False, True),
        (FLUSH_S + 0.1, True, True, True, False),
        (FLUSH_S, True, False, True, False),
        (FLUSH_S + 0.1, True, False, True, True),
        (FLUSH_S + 0.1, True, False, False, False),
        (CANCEL_S + 0.1, True, False, False, True),
    ],
)
def test_a_drain_ends_without_jobs_or_when_its_time_has_passed(
    room: Room, late_s: float, is_held: bool, is_running: bool, is_away: bool, is_drained: bool
) -> None:
    assert not room.supervisor._is_drained()
    worker = room.up_worker()
    if is_held:
        room.held("a", worker if is_running else None)
    room.redis_state.error = "away" if is_away else None
    room.supervisor._drain_until = room.clock.now - late_s
    assert room.supervisor._is_drained() == is_drained


@pytest.mark.parametrize("is_clean", [True, False])
@pytest.mark.parametrize("is_held", [True, False])
def test_a_shutdown_stops_every_part_and_forgets_a_clean_start(room: Room, is_clean: bool, is_held: bool) -> None:
    room.is_clean = is_clean
    if is_held:
        room.held("a")
    room.pool.stop = lambda on_death: room.calls.append(("pool.stop", on_death))  # type: ignore[method-assign]
    room.supervisor._shut_down()
    names = [
        "cleanup.send_requests",
        "pool.stop",
        "cleanup.clean_up_here",
        "archiver.stop",
        "hooks.stop",
        "components.stop",
    ]
    assert room.names() == names + (["node.forget_sids"] if is_clean else [])
    assert room.called("cleanup.send_requests") == [(("now", True),)] and room.called("components.stop") == [
        (not is_held,)
    ]
    assert room.called("pool.stop") == [(room.dispatcher.reap,)]
    assert room.called("node.forget_sids") == ([(["s"],)] if is_clean else [])
    assert room.lines.kept == [("info", "service_stopped", {"unfinished": int(is_held)})]


@pytest.mark.parametrize("is_broken", [True, False])
def test_a_run_turns_until_it_is_drained_and_shuts_down_in_order(room: Room, is_broken: bool) -> None:
    turned: list[int] = []
    supervisor = room.supervisor

    def turn() -> None:
        turned.append(1)
        if is_broken:
            raise KeyError("x")
        if len(turned) == 3:
            supervisor._drain_until = room.clock.now

    supervisor._turn = turn  # type: ignore[method-assign]
    supervisor._shut_down = lambda: room.calls.append(("end",))  # type: ignore[method-assign]
    if is_broken:
        with pytest.raises(KeyError):
            supervisor.run()
    else:
        supervisor.run([signal.SIGHUP])
        assert len(turned) == 3 and list(supervisor._signals) == [signal.SIGHUP]
    assert [call[1] for call in room.calls if call[0] == "signal"] == list(supervisor_module.SIGNALS)
    assert room.names()[len(supervisor_module.SIGNALS) :] == ["components.start", "notifier.stopping", "end"]
    assert room.called("notifier.stopping") == [(EXTEND_S,)]


def test_a_new_supervisor_has_done_nothing_yet(room: Room) -> None:
    supervisor = room.supervisor
    assert (supervisor._is_ready, supervisor._has_cancelled, supervisor._drain_until) == (False, False, None)
    assert isinstance(room.in_flight, InFlightTable) and isinstance(room.clock, Clock) and isinstance(room.lines, Lines)
