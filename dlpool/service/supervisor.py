"""The supervisor of a node: an event loop over workers, threads and signals.

The loop is level-triggered: each turn compares the wanted state with the actual state.
Each step can be repeated without harm. The main thread starts workers and talks to
them. Other threads of the supervisor talk to Redis. Signal handlers queue signals for
the main thread.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from dlpool.config import Settings
from dlpool.config.owned_paths import owned_paths
from dlpool.jobs.confinement import Confinement
from dlpool.observe.log import Log
from dlpool.service.hooks.archiving import LogArchiver
from dlpool.service.monitor.monitor import NodeStatus
from dlpool.service.node.node import Node
from dlpool.service.node.systemd import SystemdNotifier
from dlpool.service.queue.messages import (
    FenceChecked,
    HostHeld,
    HostSlotAnswered,
    JobsClaimed,
    JobsTakenBack,
    LeaseLost,
    Message,
    ResultRecorded,
    StaleFilesFound,
    StateChanged,
    StopRequested,
    WaitingHosts,
)
from dlpool.service.reload import SettingsLoader, reload_settings
from dlpool.service.wire.frames import config_frame
from dlpool.service.wiring import SupervisorComponents
from dlpool.service.worker_handle import WorkerHandle

TURN_S = 0.5  # the longest sleep of the loop
TICK_S = 1.0  # between periodic tasks
RECONCILE_S = 0.05  # between two reconciliations, unless a change needs one at once
# a service manager must not kill the service while Redis is unavailable or running jobs
# may finish
EXTEND_S = 60.0
FLUSH_S = 5.0  # after a drain, to record the last results while Redis is unavailable
CANCEL_S = 10.0  # after the end of a drain, for workers to checkpoint
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Supervisor:
    """One run of the service. ``run`` is called once, on the main thread."""

    def __init__(
        self,
        settings: Settings,
        load: SettingsLoader,
        node: Node,
        log: Log,
        components: SupervisorComponents,
    ) -> None:
        """Create a supervisor; ``load`` reads the settings again for a reload."""
        self._settings = settings
        self._load = load
        self._node = node
        self._log = log
        self._logger = log.logger("supervisor")
        self._components = components
        self._in_flight, self._pool = components.in_flight, components.pool
        self._dispatcher = components.dispatcher
        self._notifier = SystemdNotifier()
        self._watchdog = components.make_watchdog(self._notifier)
        self._archiver = LogArchiver(settings.logging, log.path, log.logger("log"))
        self._signals: deque[int] = deque()
        self._drain_until: float | None = None
        self._has_cancelled = False
        self._is_ready = False
        self._reconciled_at = self._ticked_at = 0.0
        self._message_handlers = self._make_message_handlers()

    def __repr__(self) -> str:
        return (
            f"<Supervisor {self._components.sid}: {self._in_flight!r}, {self._pool!r}>"
        )

    def _make_message_handlers(self) -> Mapping[type[Message], Callable[[Any], object]]:
        components, dispatcher = self._components, self._dispatcher
        return {
            JobsClaimed: self._handle_claimed,
            WaitingHosts: lambda message: components.yield_controller.handle_waiting(
                message.hosts
            ),
            ResultRecorded: dispatcher.handle_recorded,
            FenceChecked: lambda message: dispatcher.handle_fence_check(
                message.lease_id, is_ours=message.is_ours
            ),
            HostSlotAnswered: dispatcher.handle_host_slot,
            HostHeld: lambda message: components.host_admission.hold(
                message.host, message.duration_s, is_ours=False
            ),
            LeaseLost: lambda message: dispatcher.fence_off(message.lease_id),
            StopRequested: lambda message: dispatcher.request_stop(
                message.lease_id, message.action
            ),
            JobsTakenBack: lambda message: self._node.forget_sids(message.sids),
            StaleFilesFound: lambda message: components.cleanup.enqueue(message.jobs),
            StateChanged: lambda _: components.check_threads(),
        }

    def run(self, early: Iterable[int] = ()) -> None:
        """Work until a signal stops the service.

        ``early`` are signals that were received before the call. Raises DlpoolError if
        the service cannot continue.
        """
        for number in SIGNALS:
            signal.signal(number, self._queue_signal)
        self._signals.extend(early)
        self._components.start()
        try:
            while not self._is_drained():
                self._turn()
        finally:
            self._notifier.stopping(EXTEND_S)
            self._shut_down()

    def _queue_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        self._components.mailbox.wake()

    def _turn(self) -> None:
        for key, _ in self._components.selector.select(TURN_S):
            if isinstance(key.data, WorkerHandle):
                self._dispatcher.read_frames(key.data)
            elif key.data is not None:
                key.data()
                self._dispatcher.needs_reconcile = True
        while self._signals:
            self._dispatcher.needs_reconcile = True
            self._handle_signal(self._signals.popleft())
        for message in self._components.mailbox.read():
            self._message_handlers[type(message)](message)
        self._dispatcher.assign_waiting()
        self._in_flight.set_ahead_limit(self._ahead_limit())
        self._components.cleanup.send_requests()
        if (
            self._dispatcher.needs_reconcile
            or time.monotonic() - self._reconciled_at >= RECONCILE_S
        ):
            self._reconcile()

    def _handle_claimed(self, message: JobsClaimed) -> None:
        for claimed in message.jobs:
            self._dispatcher.accept(claimed, message.leased_until)
        self._components.claimer.resume()

    def _reconcile(self) -> None:
        """Adapt the workers and the capacity to the wanted state.

        Small jobs cause many turns of the loop. So a turn calls this method only if
        ``needs_reconcile`` is set, or ``RECONCILE_S`` seconds after the last call.
        """
        self._dispatcher.needs_reconcile = False
        self._reconciled_at = time.monotonic()
        self._pool.reconcile(
            self._dispatcher.count_quarantined(), self._dispatcher.reap
        )
        if self._drain_until is not None:
            self._continue_drain()
        self._in_flight.set_capacity(self._capacity())
        self._dispatcher.recall_overdue()
        self._check_ready()
        self._tick()

    def _capacity(self) -> int:
        """Return how many jobs may run at once.

        Return 0 during a drain, during a disk fault, and while disk space is low.
        """
        guard = self._components.disk_guard
        if self._drain_until is not None or guard.fault_s is not None or guard.is_low:
            return 0
        return min(self._pool.capacity(), self._components.slots.level)

    def _ahead_limit(self) -> int:
        """Return how many jobs may be claimed before slots are free for them.

        Return 0 if the node's limit is below the slots of its workers, if hosts have
        configured limits, or if ``JobClaimer.finds_jobs_ahead`` is False.
        """
        components = self._components
        if (
            self._in_flight.capacity < self._pool.capacity()
            or components.host_admission.limits.is_limited
            or not components.claimer.finds_jobs_ahead
        ):
            return 0
        return self._pool.slots_ahead()

    def _tick(self) -> None:
        """Run the periodic tasks, at most once in ``TICK_S`` seconds."""
        now = time.monotonic()
        if now - self._ticked_at < TICK_S:
            return
        self._ticked_at = now
        components = self._components
        components.check_threads()
        components.slots.sample(
            self._pool.received(),
            self._in_flight.busy,
            over_memory=self._pool.over_memory,
        )
        components.slots.hosts.forget_idle()
        components.yield_controller.tick()
        self._pool.set_disk_space(components.disk_guard.frame)
        self._log.reopen()
        self._log.maintain()
        self._report()
        self._archiver.archive_new_logs()
        if not self._is_ready or self._drain_until is not None:
            self._notifier.extend_timeout(EXTEND_S)
        self._notifier.status(self._status())
        self._watchdog.check()

    def _check_ready(self) -> None:
        """Report once that the service is ready, as soon as workers are ready and this
        supervisor is registered."""
        if (
            not self._is_ready
            and self._pool.capacity()
            and self._components.redis_state.registered.is_set()
        ):
            self._is_ready = True
            self._notifier.ready()
            self._report()
            slots = min(self._pool.capacity(), self._components.slots.level)
            self._logger.info("service_ready", slots=slots)

    def _report(self) -> None:
        """Update what health checks and metrics show."""
        guard, slots = self._components.disk_guard, self._components.slots
        self._components.monitor.sample(
            NodeStatus(
                self._drain_until is not None,
                guard.fault_s,
                guard.low_folders,
                min(self._pool.capacity(), slots.level),
                slots.hosts.limited_hosts,
            )
        )

    def _status(self) -> str:
        """Return the status line for the service manager."""
        state = self._state()
        jobs, workers = len(self._in_flight), len(self._pool.workers)
        return f"{state}: {jobs} jobs, {workers} workers"

    def _state(self) -> str:
        if self._drain_until is not None:
            return "draining"
        if self._components.redis_state.error:
            return "waiting for Redis"
        if self._components.disk_guard.low_folders:
            return "waiting for disk space"
        return "working"

    # --- signals ---

    def _handle_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        self._logger.info("signal_received", signal=name)
        if number in (signal.SIGTERM, signal.SIGINT):
            self._begin_drain()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            self._log.reopen()
        else:
            self._logger.info("state_dumped", **self.dump())

    def dump(self) -> dict[str, Any]:
        """Return the state of the supervisor, for the log."""
        components = self._components
        return {
            "supervisor": repr(self),
            "redis_state": repr(components.redis_state),
            "hooks": repr(components.hooks),
            "monitor": repr(components.monitor),
            "disk_guard": repr(components.disk_guard),
            "limits": repr(components.slots),
            "workers": [repr(one) for one in self._pool.workers.values()],
            "in_flight": [
                {"id": one.lease.job_id, "worker": one.worker_pid, **one.progress}
                for one in self._in_flight.all()[:100]
            ],
        }

    def _reload(self) -> None:
        """Reload the settings. If they are invalid, nothing changes."""
        # otherwise the service manager waits for another state
        is_notified = self._is_ready and self._drain_until is None
        if is_notified:
            self._notifier.reloading(time.monotonic_ns() // 1000)
        new, problems = reload_settings(self._settings, self._load)
        for problem in problems:
            self._logger.warning(
                "reload_incomplete" if new is not None else "reload_refused",
                reason=problem,
            )
        if new is not None:
            self._apply(new)
            self._logger.info("configuration_reloaded")
        if is_notified:
            self._notifier.ready()

    def _apply(self, new: Settings) -> None:
        self._settings = new
        self._components.apply(new)
        self._log.apply(new.logging)
        self._archiver.settings = new.logging
        self._pool.broadcast(config_frame(new))
        self._pool.worker_settings = replace(
            self._pool.worker_settings,
            transfer=new.transfer,
            network=new.network,
            paths=new.paths,
            logging=new.logging,
            owned=owned_paths(new),
            min_free=new.supervisor.min_free,
        )

    # --- drain and shutdown ---

    def _begin_drain(self) -> None:
        """Stop claiming, and let running jobs finish within ``drain_timeout``.

        A second call ends the wait: the jobs that still run are cancelled.
        """
        now = time.monotonic()
        if self._drain_until is not None:
            self._drain_until = min(self._drain_until, now)
            return
        self._drain_until = now + self._settings.supervisor.drain_timeout
        self._in_flight.set_capacity(0)
        self._components.claimer.stop()
        self._dispatcher.release_waiting("the supervisor stops")
        self._notifier.stopping(EXTEND_S)
        timeout_s = self._settings.supervisor.drain_timeout
        self._logger.info(
            "drain_started", running=len(self._in_flight), seconds=timeout_s
        )

    def _continue_drain(self) -> None:
        assert self._drain_until is not None
        self._dispatcher.release_waiting("the supervisor stops")
        if time.monotonic() >= self._drain_until and not self._has_cancelled:
            self._has_cancelled = True
            self._dispatcher.cancel_running("the supervisor stops")

    def _is_drained(self) -> bool:
        """Return whether the service may exit.

        During a drain, the service may exit when no job is in flight, or when the time
        for the remaining jobs has passed. Final results that Redis has not recorded by
        then are in the spool. The next start returns the other jobs to the queue.
        """
        if self._drain_until is None:
            return False
        if len(self._in_flight) == 0:
            return True
        late_s = time.monotonic() - self._drain_until
        is_running = any(worker.jobs for worker in self._pool.workers.values())
        return late_s > (
            CANCEL_S
            if is_running
            else FLUSH_S
            if self._components.redis_state.error
            else CANCEL_S
        )

    def _shut_down(self) -> None:
        in_flight = len(self._in_flight)
        self._components.cleanup.send_requests(now=True)
        self._pool.stop(self._dispatcher.reap)
        self._components.cleanup.clean_up_here(Confinement.of(self._settings))
        self._archiver.stop()
        # before the embedded Redis stops: a hook may use it
        self._components.hooks.stop()
        is_clean = self._components.stop(is_empty=in_flight == 0)
        if is_clean:
            self._node.forget_sids([self._components.sid])
        self._dispatcher.summarize(now=True)
        self._logger.info("service_stopped", unfinished=in_flight)
