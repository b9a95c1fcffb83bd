"""What is shown of a supervisor to programs that watch it: metrics and health, over
HTTP.

Once a second the main thread writes down what only it knows (``look``); threads of
their own survey the queue and the disks, and answer who asks. None of them can end the
service, nor make it wait.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from dlpool import __version__, jsontext, threads
from dlpool.config import PathSettings, Settings
from dlpool.jobs.transitions import Transitions
from dlpool.observe.health import Health, HealthCheck, format_checks
from dlpool.observe.http_server import (
    MonitoringServer,
    ProbeRequest,
    ProbeResponse,
    Route,
)
from dlpool.observe.log import Log
from dlpool.observe.metrics import Metrics, set_each
from dlpool.service.inflight import InFlightJob, InFlightTable
from dlpool.service.monitor.metrics_collector import MetricsCollector
from dlpool.service.monitor.surveys import DiskSurvey, QueueSurvey, SurveyThread
from dlpool.service.pool import WorkerPool
from dlpool.service.queue.redis_state import RedisState
from dlpool.service.worker_handle import WorkerHandle


@dataclass(frozen=True)
class NodeStatus:
    """What the main thread alone knows. ``fault_s``: seconds until a disk with a fault
    is tried again, None without.

    ``low``: folders on file systems that have less left than ``min_free``. ``slots``:
    how many jobs it would take. ``limited_hosts``: how many hosts get fewer.
    """

    is_draining: bool
    fault_s: float | None
    low: Sequence[str]
    slots: int
    limited_hosts: int


class Monitor:
    """``look`` and ``apply`` by the main thread; ``start`` starts the threads."""

    def __init__(
        self,
        settings: Settings,
        node_id: str,
        state_dir: Path,
        log: Log,
        metrics: Metrics,
        ledger: InFlightTable,
        pool: WorkerPool,
        link: RedisState,
        transitions: Transitions,
        order: Callable[[], str],
    ) -> None:
        self._settings = settings
        self._log = log
        self._metrics = metrics
        self.collector = MetricsCollector(metrics)
        self._ledger, self._pool, self._link = ledger, pool, link
        self.health = Health()
        logger = log.logger("metrics")
        self._listener = MonitoringServer(
            settings.metrics.listen, http_routes(metrics, self.health, node_id), logger
        )
        surveys = (
            QueueSurvey(transitions, metrics, link, order, time.monotonic).sample,
            DiskSurvey(self._folders, state_dir / "spool", metrics).sample,
        )
        surveyors = [
            SurveyThread(look, self._is_heard, link.stopping, logger)
            for look in surveys
        ]
        served = (self._listener.serve, *(one.serve for one in surveyors))
        self._threads = [
            threads.DaemonThread(serve, name)
            for name, serve in zip(
                ("http", "survey-queue", "survey-disk"), served, strict=True
            )
        ]

    def __repr__(self) -> str:
        return f"<Monitor {self._listener!r}, {self.health!r}>"

    def start(self) -> None:
        """Answer who asks."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answer nobody any more, soon; nobody waits for that."""
        self._listener.stop()

    def apply(self, settings: Settings) -> None:
        """Use reloaded settings."""
        self._settings = settings
        self._listener.address = settings.metrics.listen

    def sample(self, seen: NodeStatus) -> None:
        """Write down how things are."""
        checks = self._checks(seen)
        self.health.update(checks)
        metrics = self._metrics
        metrics.ready.set(not any(check.problem for check in checks))
        metrics.redis_up.set(
            self._link.error is None and self._link.registered.is_set()
        )
        metrics.node_fault.set(seen.fault_s is not None)
        metrics.slots.set(seen.slots)
        metrics.limited_hosts.set(seen.limited_hosts)
        metrics.low_on_space.set(bool(seen.low))
        workers = list(self._pool.workers.values())
        sizes = [one.resident_bytes for one in workers]
        metrics.worker_memory.set(sum(sizes))
        metrics.worker_memory_max.set(max(sizes, default=0))
        set_each(
            metrics.workers,
            dict.fromkeys(WORKER_STATES, 0) | Counter(map(worker_state, workers)),
        )
        held = self._ledger.all()
        set_each(
            metrics.in_flight,
            dict.fromkeys(IN_FLIGHT_STATES, 0) | Counter(map(in_flight_state, held)),
        )
        metrics.connections.set(
            sum(
                one.progress.get("connections", 0)
                for one in held
                if in_flight_state(one) == "running"
            )
        )
        self.collector.set_log_dropped(self._log.dropped)

    def _checks(self, seen: NodeStatus) -> list[HealthCheck]:
        missing = (
            ""
            if self._link.registered.is_set()
            else "this node is not registered there"
        )
        is_well = seen.fault_s is None
        fault = (
            ""
            if is_well
            else f"full or broken: no jobs until a write succeeds, tried in "
            f"{seen.fault_s:.0f} s"
        )
        return [
            HealthCheck("redis", self._link.error or missing),
            HealthCheck(
                "workers", "" if self._pool.capacity() else "no worker process is up"
            ),
            HealthCheck("disk", fault),
            HealthCheck(
                "space",
                f"less than min_free is left for {', '.join(seen.low)}"
                if seen.low
                else "",
            ),
            HealthCheck("accepting", "the service ends" if seen.is_draining else ""),
        ]

    def _is_heard(self) -> bool:
        return self._listener.address != ""

    def _folders(self) -> list[str]:
        return written_folders(self._settings.paths)


WORKER_STATES = ("starting", "idle", "busy", "retiring", "ending")
IN_FLIGHT_STATES = ("waiting", "running", "recording")


def worker_state(handle: WorkerHandle) -> str:
    """One of ``WORKER_STATES``."""
    if handle.kill_reason or handle.has_exited:
        return "ending"
    if not handle.is_ready:
        return "starting"
    return "retiring" if handle.is_retiring else "busy" if handle.jobs else "idle"


def in_flight_state(held: InFlightJob) -> str:
    """One of ``HELD_STATES``: for a worker or its host, in a worker, or until Redis
    knows how it ended."""
    return (
        "recording"
        if held.is_ending
        else "running"
        if held.worker_pid is not None
        else "waiting"
    )


def written_folders(paths: PathSettings) -> list[str]:
    """Where dlpool writes."""
    roots = paths.allowed_roots.split(":") if paths.allowed_roots else []
    return sorted(
        {paths.download_dir, paths.state_dir, paths.log_dir, *filter(None, roots)}
    )


def http_routes(metrics: Metrics, health: Health, node_id: str) -> dict[str, Route]:
    """What is answered at each path."""
    version = {
        "version": __version__,
        "python": platform.python_version(),
        "node": node_id,
    }

    def probe(checks: Callable[[], tuple[HealthCheck, ...]]) -> Route:
        def answer(request: ProbeRequest) -> ProbeResponse:
            is_good, text = format_checks(
                checks(), is_verbose="verbose" in request.options
            )
            return ProbeResponse(
                text.encode(),
                status=HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE,
            )

        return answer

    return {
        "/metrics": lambda request: ProbeResponse(*metrics.exposition(request.accept)),
        "/livez": probe(lambda: (health.liveness(),)),
        "/readyz": probe(health.readiness),
        "/version": lambda _: ProbeResponse(
            jsontext.dumps(version) + b"\n", "application/json"
        ),
    }
