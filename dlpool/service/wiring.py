"""Wiring: creates the components of a supervisor, and starts and stops its threads.

This is the composition root of the service.
"""

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
from dlpool.service.dispatcher import DispatcherServices, JobDispatcher
from dlpool.service.disposition import DispositionPolicy
from dlpool.service.hooks.runner import HookRunner
from dlpool.service.host_admission import HostAdmission
from dlpool.service.host_limits import HostLimits
from dlpool.service.inflight import InFlightTable
from dlpool.service.journal import CleanupJournal
from dlpool.service.monitor.monitor import Monitor, MonitoredNode
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
from dlpool.service.queue.redis_state import QueueContext, RedisState
from dlpool.service.queue.spool import Spool
from dlpool.service.queue.sweeping import StaleFileSweeper
from dlpool.service.slots import SlotLimit, max_slots
from dlpool.service.wire.counters import RANGE_BOUNDS_S
from dlpool.service.worker.process import WorkerSettings
from dlpool.service.yield_control import YieldController

THROTTLED_PER_SLOT = 4  # while this many are throttled, no other jobs are claimed
JOIN_S = 6.0  # longer than any call of Redis


class SupervisorComponents:
    """The components of a supervisor. Made, started and stopped on the main thread."""

    def __init__(self, settings: Settings, node: Node, log: Log) -> None:
        """Create the components. Raises DlpoolError."""
        self._log = log.logger("supervisor")
        self._started_at, self._state_dir = rfc3339(), node.state_dir
        earlier = tuple(node.earlier_sids())
        self.node_id, self.sid = node.node_id, node.new_sid()
        self.redis_server = RedisServer(settings.redis, node.state_dir, self._log)
        settings = self._settings = replace(settings, redis=self.redis_server.settings)
        self.mailbox, self.selector = Mailbox(), selectors.DefaultSelector()
        self.selector.register(self.mailbox, selectors.EVENT_READ, None)
        metrics = Metrics(RANGE_BOUNDS_S)
        self.redis_state = RedisState(
            log.logger("redis"), self._post_change, metrics.count_redis_failure
        )
        self.in_flight = InFlightTable(settings.supervisor.host_share)
        self.disk_guard = DiskGuard(
            settings, self.in_flight, self._log, self._post_change
        )
        self.slots = SlotLimit(settings.supervisor, self._log, time.monotonic)
        self._transitions = self._make_transitions(metrics)
        self.pool = self._make_pool(node, metrics)
        spool, journal = Spool(node.state_dir), CleanupJournal(node.state_dir)
        self.cleanup = CleanupDispatcher(self.pool, journal, self._log)
        self._queue = self._make_queue_context()
        self._recorder = ResultRecorder(self._queue, spool)
        self.hooks = HookRunner(settings.hooks, self.node_id, log.logger("hooks"))
        self.host_admission = self._make_host_admission()
        self.monitor = self._make_monitor(log, metrics)
        self.dispatcher = self._make_dispatcher(log)
        self.claimer = self._make_claimer()
        self.yield_controller = self._make_yield_controller()
        self._heartbeat = self._make_heartbeat(spool, journal, earlier)
        self._failure: BaseException | None = None
        self._threads = [
            self._thread("claim", self.claimer.serve),
            self._thread("heartbeat", self._heartbeat.serve),
            self._thread("record", self._recorder.serve),
        ]

    def _make_transitions(self, metrics: Metrics) -> Transitions:
        redis = self._settings.redis
        client = connect(redis, self._state_dir, name=f"dlpool-{self.sid}")
        return Transitions(client, QueueKeys(redis.group), metrics.observe_redis_call)

    def _make_pool(self, node: Node, metrics: Metrics) -> WorkerPool:
        return WorkerPool(
            self._settings.supervisor,
            _worker_settings(self._settings, node),
            self.selector,
            self._log,
            metrics,
        )

    def _make_host_admission(self) -> HostAdmission:
        return HostAdmission(
            self.in_flight,
            HostLimits(self._settings, time.monotonic),
            self.slots.hosts,
            self._recorder,
            self.pool,
            self._log,
        )

    def _make_yield_controller(self) -> YieldController:
        return YieldController(
            self._settings,
            self.in_flight,
            self.monitor.collector,
            self.dispatcher.yield_slot,
            self.claimer.request_waiting_hosts,
        )

    def _make_monitor(self, log: Log, metrics: Metrics) -> Monitor:
        node = MonitoredNode(
            self.node_id,
            self._state_dir,
            log,
            metrics,
            self.in_flight,
            self.pool,
            self.redis_state,
            self._transitions,
            self._order,
        )
        return Monitor(self._settings, node)

    def _make_queue_context(self) -> QueueContext:
        return QueueContext(
            self._transitions,
            self.sid,
            self.in_flight,
            self.redis_state,
            self._log,
            self._settings.supervisor.lease,
            self._settings.supervisor.grace,
            self._order,
            self.mailbox.post,
        )

    def _make_claimer(self) -> JobClaimer:
        return JobClaimer(
            self._queue,
            self._client("claim"),
            THROTTLED_PER_SLOT * max_slots(self._settings.supervisor),
        )

    def _make_heartbeat(
        self, spool: Spool, journal: CleanupJournal, earlier: tuple[str, ...]
    ) -> Heartbeat:
        return Heartbeat(
            self._queue,
            self._client("heartbeat"),
            spool,
            self.claimer,
            StaleFileSweeper(self._queue, journal),
            info=self._info,
            earlier=earlier,
        )

    def _make_dispatcher(self, log: Log) -> JobDispatcher:
        services = DispatcherServices(
            in_flight=self.in_flight,
            pool=self.pool,
            recorder=self._recorder,
            cleanup=self.cleanup,
            hooks=self.hooks,
            host_admission=self.host_admission,
            collector=self.monitor.collector,
            log=log.logger("jobs"),
            on_node_fault=self.disk_guard.report_fault,
        )
        return JobDispatcher(services, self._make_policy())

    def _make_policy(self) -> DispositionPolicy:
        return DispositionPolicy(
            self._transitions.keys, self._settings.supervisor, time.time, random.random
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()
        # not joined: a file system that does not answer may block it forever
        self._thread("space", self._watch_disks).start()
        self.monitor.start()

    def apply(self, settings: Settings) -> None:
        """Use reloaded settings."""
        settings = self._settings = replace(
            settings,
            redis=replace(self.redis_server.settings, order=settings.redis.order),
        )
        self.pool.settings = settings.supervisor
        self.in_flight.host_share = settings.supervisor.host_share
        self.hooks.settings = settings.hooks
        self.monitor.apply(settings)
        self.disk_guard.apply(settings)
        self.host_admission.limits.apply(settings)
        self.yield_controller.apply(settings)
        self.dispatcher.policy = self._make_policy()

    def check_threads(self) -> None:
        """Raise InternalError if a thread has failed; otherwise restart the embedded
        Redis if it has exited.

        Raises the errors of ``RedisServer.restart_if_exited``.
        """
        if self._failure is not None:
            raise InternalError(
                f"a thread of the supervisor failed: {self._failure}"
            ) from self._failure
        self.redis_server.restart_if_exited()

    def make_watchdog(self, notifier: SystemdNotifier) -> Watchdog:
        """Return a watchdog that watches the threads."""
        return Watchdog(notifier, self.redis_state.liveness, self._threads, self._log)

    def stop(self, *, is_empty: bool) -> bool:
        """Stop the threads and the embedded Redis. Deregister from Redis if
        ``is_empty``.

        ``is_empty``: whether no job is in flight. Return whether this supervisor has
        been deregistered.
        """
        self.redis_state.stopping.set()
        self.monitor.stop()
        self._wake_threads()
        for thread in self._threads:
            thread.join(JOIN_S)
        is_clean = is_empty and self._deregister()
        self.redis_server.stop()
        return is_clean

    def _wake_threads(self) -> None:
        """End the threads' blocking calls in Redis.

        If this fails, the calls end within a second.
        """
        if self.redis_state.error is None:
            with suppress(QueueError):
                self.claimer.wake()
                self._heartbeat.wake()

    def _deregister(self) -> bool:
        """Requeue the jobs that this supervisor still holds, and remove the supervisor
        from Redis.

        So other supervisors need not wait until the leases expire. Return False after
        an error of Redis.
        """
        try:
            self._transitions.requeue_jobs_of([self.sid], order=self._order())
        except QueueError as error:
            self._log.warning("deregistration_failed", error=error)
            return False
        return True

    def _post_change(self) -> None:
        self.mailbox.post(StateChanged())

    def _watch_disks(self) -> None:
        self.disk_guard.serve(self.redis_state.stopping)

    def _client(self, name: str) -> Any:
        return connect(
            self._settings.redis, self._state_dir, name=f"dlpool-{name}-{self.sid}"
        )

    def _order(self) -> str:
        return self._settings.redis.order

    def _info(self) -> dict[str, Any]:
        """Return what the heartbeat publishes about this supervisor."""
        return {
            "node": self.node_id,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "slots": self.slots.level,
            "busy": len(self.in_flight),
            "started_at": self._started_at,
            "free": self.disk_guard.free_after_jobs,
            "is_low_on_space": bool(self.disk_guard.low_folders),
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
            except Exception as error:  # noqa: BLE001 - top of a thread: the service stops
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
