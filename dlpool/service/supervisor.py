"""The supervisor of a node: an event loop over workers, threads and signals.

Level-triggered: each turn compares wanted with actual, and each step is safe to take
again. The main thread talks to workers and starts them; only its threads talk to Redis.
Signal handlers only queue.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
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
    HostSlotDecided,
    JobsClaimed,
    JobsTakenBack,
    LeaseLost,
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
TEND_S = 1.0
COMPARE_S = 0.05
# a service manager must not end us for the absence of Redis, nor for jobs that may
# finish
MORE_S = 60.0
FLUSH_S = 5.0  # after a drain, for Redis to hear of the last jobs
CANCEL_S = 10.0  # after a drain's end, for workers to checkpoint
OBEYED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Supervisor:
    """One run of the service: ``run`` is called once, on the main thread."""

    def __init__(
        self,
        settings: Settings,
        load: SettingsLoader,
        node: Node,
        log: Log,
        parts: SupervisorComponents,
    ) -> None:
        """``load`` reads the settings anew for a reload."""
        self._settings = settings
        self._load = load
        self._node = node
        self._log = log
        self._logger = log.logger("supervisor")
        self._parts = parts
        self._ledger, self._pool, self._crew = (
            parts.in_flight,
            parts.pool,
            parts.dispatcher,
        )
        self._manager = SystemdNotifier()
        self._watchdog = parts.watchdog(self._manager)
        self._archiver = LogArchiver(settings.logging, log.path, log.logger("log"))
        self._signals: deque[int] = deque()
        self._drain_until: float | None = None
        self._has_cancelled = False
        self._is_ready = False
        self._compared = self._tended = 0.0
        crew = self._crew
        self._takers: dict[type, Callable[[Any], object]] = {
            JobsClaimed: self._claimed,
            WaitingHosts: lambda said: parts.yield_controller.handle_waiting(
                said.hosts
            ),
            ResultRecorded: crew.handle_recorded,
            FenceChecked: lambda said: crew.handle_fence_check(
                said.ticket, is_ours=said.is_ours
            ),
            HostSlotDecided: crew.handle_host_slot,
            HostHeld: lambda said: parts.host_admission.hold(
                said.host, said.seconds, is_ours=False
            ),
            LeaseLost: lambda said: crew.fence_off(said.ticket),
            StopRequested: lambda said: crew.request_stop(said.ticket, said.verb),
            JobsTakenBack: lambda said: node.forget_sids(said.sids),
            StaleFilesFound: lambda said: parts.cleanup.enqueue(said.leftovers),
            StateChanged: lambda _: parts.check_threads(),
        }

    def __repr__(self) -> str:
        return f"<Supervisor {self._parts.sid}: {self._ledger!r}, {self._pool!r}>"

    def run(self, early: Iterable[int] = ()) -> None:
        """Work until told to end; ``early`` are signals that came before.

        Raises WorkerStartFailed, or what ended one of the threads.
        """
        for number in OBEYED:
            signal.signal(number, self._note)
        self._signals.extend(early)
        self._parts.start()
        try:
            while not self._is_drained():
                self._turn()
        finally:
            self._manager.stopping(MORE_S)
            self._end()

    def _note(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        self._parts.mailbox.wake()

    def _turn(self) -> None:
        for key, _ in self._parts.selector.select(TURN_S):
            if isinstance(key.data, WorkerHandle):
                self._crew.read_frames(key.data)
            elif key.data is not None:
                key.data()
                self._crew.needs_reconcile = True
        while self._signals:
            self._crew.needs_reconcile = True
            self._obey(self._signals.popleft())
        for message in self._parts.mailbox.read():
            self._take(message)
        self._crew.assign_waiting()
        self._parts.cleanup.send_requests()
        if self._crew.needs_reconcile or time.monotonic() - self._compared >= COMPARE_S:
            self._compare()

    def _compare(self) -> None:
        """Wanted with actual: not in each of the many turns of small jobs, but at once
        when there is news."""
        self._crew.needs_reconcile = False
        self._compared = time.monotonic()
        self._pool.reconcile(self._crew.count_quarantined(), self._crew.reap)
        if self._drain_until is not None:
            self._drain()
        self._ledger.set_capacity(self._capacity())
        self._look_whether_ready()
        self._tend()

    def _capacity(self) -> int:
        """How many jobs may be held: none while this node ends or cannot write."""
        space = self._parts.space
        if self._drain_until is not None or space.fault_s is not None or space.is_low:
            return 0
        return min(self._pool.capacity(), self._parts.slots.level)

    def _take(self, message: Any) -> None:
        self._takers[type(message)](message)

    def _claimed(self, message: JobsClaimed) -> None:
        for claimed in message.jobs:
            self._crew.accept(claimed, message.leased_until)
        self._parts.fetcher.resume()

    def _tend(self) -> None:
        now = time.monotonic()
        if now - self._tended < TEND_S:
            return
        self._tended = now
        self._parts.check_threads()
        self._parts.slots.sample(
            self._pool.received(), self._ledger.busy, over_memory=self._pool.over_memory
        )
        self._parts.slots.hosts.forget_idle()
        self._parts.yield_controller.tick()
        self._pool.set_disk_space(self._parts.space.frame)
        self._log.follow_rename()
        self._log.maintain()
        self._show()
        self._archiver.archive_new_logs()
        if not self._is_ready or self._drain_until is not None:
            self._manager.extend_timeout(MORE_S)
        self._manager.status(self._status())
        self._watchdog.check()

    def _look_whether_ready(self) -> None:
        """Workers are there, and Redis knows us; until then a service manager is asked
        for more time."""
        if (
            not self._is_ready
            and self._pool.capacity()
            and self._parts.link.registered.is_set()
        ):
            self._is_ready = True
            self._manager.ready()
            self._show()
            self._logger.info(
                "service_ready",
                slots=min(self._pool.capacity(), self._parts.slots.level),
            )

    def _show(self) -> None:
        """Tell who watches us how things are."""
        space = self._parts.space
        slots = min(self._pool.capacity(), self._parts.slots.level)
        limited = self._parts.slots.hosts.limited
        seen = NodeStatus(
            self._drain_until is not None,
            space.fault_s,
            space.low_folders,
            slots,
            limited,
        )
        self._parts.monitor.sample(seen)

    def _status(self) -> str:
        error = self._parts.link.error
        state = (
            "draining"
            if self._drain_until is not None
            else "waiting for Redis"
            if error
            else "working"
        )
        if state == "working" and self._parts.space.low_folders:
            state = "waiting for disk space"
        return f"{state}: {len(self._ledger)} jobs, {len(self._pool.workers)} workers"

    # --- signals ---

    def _obey(self, number: int) -> None:
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
        """The state for people, into the log."""
        return {
            "supervisor": repr(self),
            "link": repr(self._parts.link),
            "hooks": repr(self._parts.hooks),
            "monitor": repr(self._parts.monitor),
            "space": repr(self._parts.space),
            "limits": repr(self._parts.slots),
            "workers": [repr(one) for one in self._pool.workers.values()],
            "held": [
                {"id": one.lease.job_id, "worker": one.worker_pid, **one.progress}
                for one in self._ledger.all()[:100]
            ],
        }

    def _reload(self) -> None:
        """All or nothing: a file that cannot be used changes nothing."""
        is_told = (
            self._is_ready and self._drain_until is None
        )  # else the manager waits for another word than "ready"
        if is_told:
            self._manager.reloading(time.monotonic_ns() // 1000)
        new, problems = reload_settings(self._settings, self._load)
        for problem in problems:
            self._logger.warning(
                "reload_incomplete" if new is not None else "reload_refused",
                reason=problem,
            )
        if new is not None:
            self._settings = new
            self._parts.apply(new)
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
            self._logger.info("configuration_reloaded")
        if is_told:
            self._manager.ready()

    # --- the end ---

    def _begin_drain(self) -> None:
        """No more jobs; running ones may go on for a while. Told again: not any
        longer."""
        now = time.monotonic()
        if self._drain_until is not None:
            self._drain_until = min(self._drain_until, now)
            return
        self._drain_until = now + self._settings.supervisor.drain_timeout
        self._ledger.set_capacity(0)
        self._parts.fetcher.stop()
        self._crew.release_waiting("the supervisor ends")
        self._manager.stopping(MORE_S)
        self._logger.info(
            "drain_started",
            running=len(self._ledger),
            seconds=self._settings.supervisor.drain_timeout,
        )

    def _drain(self) -> None:
        assert self._drain_until is not None
        self._crew.release_waiting("the supervisor ends")
        if time.monotonic() >= self._drain_until and not self._has_cancelled:
            self._has_cancelled = True
            self._crew.cancel_running("the supervisor ends")

    def _is_drained(self) -> bool:
        """Whether nothing is held any more; what Redis cannot be told now, the next
        start gives back."""
        if self._drain_until is None:
            return False
        if len(self._ledger) == 0:
            return True
        late = time.monotonic() - self._drain_until
        running = any(handle.jobs for handle in self._pool.workers.values())
        return late > (
            CANCEL_S if running else FLUSH_S if self._parts.link.error else CANCEL_S
        )

    def _end(self) -> None:
        held = len(self._ledger)
        self._parts.cleanup.send_requests(now=True)
        self._pool.stop(self._crew.reap)
        self._parts.cleanup.clean_up_here(Confinement.of(self._settings))
        self._archiver.stop()
        self._parts.hooks.stop()  # while Redis is there: a hook may ask it
        is_clean = self._parts.stop(is_empty=held == 0)
        if is_clean:
            self._node.forget_sids([self._parts.sid])
        self._crew.summarize(now=True)
        self._logger.info("service_ended", left=held)
