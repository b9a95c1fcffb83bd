"""What a supervisor is made of, and its threads."""

from __future__ import annotations

import os
import random
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlpool import __version__, threads
from dlpool.config import Settings
from dlpool.config.owned_paths import owned_paths
from dlpool.errors import InternalError, QueueError
from dlpool.jobs.client_records import rfc3339
from dlpool.jobs.connection import connect
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.transitions import Transitions
from dlpool.observe.log import Log
from dlpool.observe.metrics import Metrics
from dlpool.service.cleanup import CleanupDispatcher
from dlpool.service.dispatcher import JobDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.hooks.runner import HookRunner
from dlpool.service.host_admission import HostAdmission
from dlpool.service.host_limits import HostLimits
from dlpool.service.inflight import InFlightTable
from dlpool.service.journal import CleanupJournal
from dlpool.service.monitor.monitor import Monitor
from dlpool.service.node.disk_guard import DiskGuard
from dlpool.service.node.node import Node
from dlpool.service.node.redis_server import RedisServer
from dlpool.service.node.systemd import SystemdNotifier
from dlpool.service.node.watchdog import Watchdog
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.claiming import JobClaimer
from dlpool.service.queue.heartbeat import Heartbeat
from dlpool.service.queue.messages import Mailbox, StateChanged
from dlpool.service.queue.recording import ResultRecorder
from dlpool.service.queue.redis_state import RedisState
from dlpool.service.queue.spool import Spool
from dlpool.service.queue.sweeping import StaleFileSweeper
from dlpool.service.slots import SlotLimit, max_slots
from dlpool.service.wire.counters import RANGE_BOUNDS_S
from dlpool.service.worker.process import WorkerSettings
from dlpool.service.yield_control import YieldController

PARKED_A_SLOT = 4
JOIN_S = 6.0  # the longest call of Redis ends before


class SupervisorComponents:
    """Made, started and ended on the main thread."""

    def __init__(self, settings: Settings, node: Node, log: Log) -> None:
        """Raises ConfigurationError, LocalFault, or what the embedded server raises at
        its start."""
        self._log = log.logger("supervisor")
        self._started_at, self._state_dir = rfc3339(), node.state_dir
        earlier = tuple(node.earlier_sids())
        self.node_id, self.sid = node.node_id, node.new_sid()
        self.server = RedisServer(settings.redis, node.state_dir, self._log)
        settings = self._settings = replace(settings, redis=self.server.settings)
        self.mailbox, self.selector = Mailbox(), selectors.DefaultSelector()
        self.selector.register(self.mailbox, selectors.EVENT_READ, None)
        metrics = Metrics(RANGE_BOUNDS_S)
        self.link = RedisState(
            log.logger("redis"),
            lambda: self.mailbox.post(StateChanged()),
            metrics.count_redis_failure,
        )
        self.in_flight = InFlightTable(settings.supervisor.host_share)
        self.space = DiskGuard(
            settings,
            self.in_flight,
            self._log,
            lambda: self.mailbox.post(StateChanged()),
        )
        self.slots = SlotLimit(settings.supervisor, self._log, time.monotonic)
        client = connect(settings.redis, node.state_dir, name=f"dlpool-{self.sid}")
        self._transitions = Transitions(
            client, QueueKeys(settings.redis.group), metrics.observe_redis_call
        )
        self.pool = WorkerPool(
            settings.supervisor,
            _worker_settings(settings, node),
            self.selector,
            self._log,
            metrics,
        )
        spool, trail, lease_s = (
            Spool(node.state_dir),
            CleanupJournal(node.state_dir),
            settings.supervisor.lease,
        )
        self.cleanup = CleanupDispatcher(self.pool, trail, self._log)
        self._recorder = ResultRecorder(
            self._transitions,
            self.sid,
            lease_s,
            spool,
            self.link,
            self._log,
            self.mailbox.post,
        )
        self.hooks = HookRunner(settings.hooks, self.node_id, log.logger("hooks"))
        self.host_admission = HostAdmission(
            HostLimits(settings, time.monotonic),
            self.slots.hosts,
            self._recorder,
            self.pool,
            self._log,
        )
        self.monitor = self._make_monitor(log, metrics)
        self.dispatcher = self._make_crew(
            DispositionPolicy(
                self._transitions.keys, settings.supervisor, time.time, random.random
            ),
            log,
        )
        self.fetcher = self._make_fetcher()
        self.yield_controller = YieldController(
            settings,
            self.in_flight,
            self.monitor.collector,
            self.dispatcher.yield_slot,
            self.fetcher.request_waiting_hosts,
        )
        self._beater = self._make_beater(spool, trail, earlier)
        self._failure: BaseException | None = None
        self._threads = [
            self._thread("fetch", self.fetcher.serve),
            self._thread("beat", self._beater.serve),
            self._thread("record", self._recorder.serve),
        ]

    def _make_monitor(self, log: Log, metrics: Metrics) -> Monitor:
        return Monitor(
            self._settings,
            self.node_id,
            self._state_dir,
            log,
            metrics,
            self.in_flight,
            self.pool,
            self.link,
            self._transitions,
            self._order,
        )

    def _make_fetcher(self) -> JobClaimer:
        return JobClaimer(
            self._transitions,
            self._client("fetch"),
            self.sid,
            self.in_flight,
            self.link,
            self._settings.supervisor.lease,
            self._order,
            self.mailbox.post,
            PARKED_A_SLOT * max_slots(self._settings.supervisor),
        )

    def _make_beater(
        self, spool: Spool, trail: CleanupJournal, earlier: tuple[str, ...]
    ) -> Heartbeat:
        return Heartbeat(
            self._transitions,
            self._client("beat"),
            self.sid,
            self.in_flight,
            self.link,
            spool,
            self.fetcher,
            self._log,
            lease_s=self._settings.supervisor.lease,
            grace_s=self._settings.supervisor.grace,
            order=self._order,
            info=self._info,
            post=self.mailbox.post,
            earlier=earlier,
            sweeper=StaleFileSweeper(
                self._transitions, trail, self.in_flight, self.mailbox.post
            ),
        )

    def _make_crew(self, judge: DispositionPolicy, log: Log) -> JobDispatcher:
        return JobDispatcher(
            self.in_flight,
            self.pool,
            self._recorder,
            judge,
            self.cleanup,
            log.logger("jobs"),
            self.hooks,
            self.host_admission,
            self.monitor.collector,
            self.space.report_fault,
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        self._thread(
            "space", lambda: self.space.serve(self.link.stopping)
        ).start()  # a dead mount may hold it for good
        self.monitor.start()

    def apply(self, settings: Settings) -> None:
        """Use reloaded settings."""
        settings = self._settings = replace(
            settings, redis=replace(self.server.settings, order=settings.redis.order)
        )
        self.pool.settings = settings.supervisor
        self.in_flight.host_share = settings.supervisor.host_share
        self.hooks.settings = settings.hooks
        self.monitor.apply(settings)
        self.space.apply(settings)
        self.host_admission.hosts.apply(settings)
        self.yield_controller.apply(settings)
        self.dispatcher.policy = DispositionPolicy(
            self._transitions.keys, settings.supervisor, time.time, random.random
        )

    def check_threads(self) -> None:
        """Raise what ended a thread; start the embedded server again if it has
        ended."""
        if self._failure is not None:
            raise InternalError(
                f"a thread of the supervisor ended: {self._failure}"
            ) from self._failure
        self.server.restart_if_exited()

    def watchdog(self, manager: SystemdNotifier) -> Watchdog:
        """The one that watches the threads."""
        return Watchdog(manager, self.link.liveness, self._threads, self._log)

    def stop(self, *, is_empty: bool) -> bool:
        """End the threads; if nothing is held any more, also sign off. Returns whether
        that is known to Redis."""
        self.link.stopping.set()
        self.monitor.stop()
        self._end_waits()
        for thread in self._threads:
            thread.join(JOIN_S)
        is_clean = is_empty and self._sign_off()
        self.server.stop()
        return is_clean

    def _end_waits(self) -> None:
        """The threads that wait in Redis need not do so any longer; where that fails,
        they wait a second."""
        if self.link.error is None:
            with suppress(QueueError):
                self.fetcher.wake()
                self._beater.wake()

    def _sign_off(self) -> bool:
        """What was reserved goes back to the intake, and nobody waits for our
        leases."""
        try:
            self._transitions.requeue_jobs_of(self.sid, [self.sid], order=self._order())
        except QueueError as error:
            self._log.warning("sign_off_failed", error=error)
            return False
        return True

    def _client(self, name: str) -> Any:
        return connect(
            self._settings.redis, self._state_dir, name=f"dlpool-{name}-{self.sid}"
        )

    def _order(self) -> str:
        return self._settings.redis.order

    def _info(self) -> dict[str, Any]:
        """What is shown of this supervisor."""
        return {
            "node": self.node_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "slots": self.slots.level,
            "busy": len(self.in_flight),
            "started_at": self._started_at,
            "free": self.space.free_after_jobs,
            "is_low_on_space": bool(self.space.low_folders),
            "workers": len(self.pool.workers),
            "workers_info": self.pool.summaries,
            "received": self.monitor.collector.received_bytes,
            "rate": self.monitor.collector.receive_rate(),
            "lease": self._settings.supervisor.lease,
        }

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def serve() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - top of a thread: the service ends with it
                self._log.critical("thread_failed", thread=name, error=error)
                self._failure = error
                self.mailbox.post(StateChanged())

        return threads.DaemonThread(serve, name)


def _worker_settings(settings: Settings, node: Node) -> WorkerSettings:
    return WorkerSettings(
        node.node_id,
        node.state_dir,
        Path(settings.paths.log_dir),
        1,
        settings.transfer,
        settings.network,
        settings.paths,
        settings.logging,
        settings.otel,
        owned_paths(settings),
        settings.scan,
        settings.supervisor.min_free,
    )
