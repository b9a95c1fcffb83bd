"""The monitor of a supervisor: its metrics and health, served over HTTP.

Once a second the main thread samples the state that no other thread knows. Other
threads survey the queue and the disks, and answer HTTP requests; they can neither stop
nor delay the service.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path

from dlpool import jsontext, threads
from dlpool.config import PathSettings, Settings
from dlpool.dataclass import dataclass
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
from dlpool.version import __version__


@dataclass(frozen=True)
class NodeStatus:
    """The part of a node's state that only the main thread knows.

    ``fault_s``: seconds until a faulty disk is tried again, None without a fault.
    ``low``: folders on file systems with less free space than ``min_free``. ``slots``:
    jobs that the node can run at once. ``limited_hosts``: number of hosts that may run
    fewer jobs at once than ``slots``.
    """

    is_draining: bool
    fault_s: float | None
    low: Sequence[str]
    slots: int
    limited_hosts: int


@dataclass(frozen=True)
class MonitoredNode:
    """The parts of a supervisor that its monitor reads. ``order`` returns the present
    value of the setting ``order``."""

    node_id: str
    state_dir: Path
    log: Log
    metrics: Metrics
    in_flight: InFlightTable
    pool: WorkerPool
    redis: RedisState
    transitions: Transitions
    order: Callable[[], str]


class Monitor:
    """The monitor of a node, which samples the node's state and serves it over HTTP.
    The main thread calls its methods; ``start`` starts its threads."""

    def __init__(self, settings: Settings, node: MonitoredNode) -> None:
        self._settings = settings
        self._node = node
        self.collector = MetricsCollector(node.metrics)
        self.health = Health()
        logger = node.log.logger("metrics")
        self._server = MonitoringServer(
            settings.metrics.listen,
            http_routes(node.metrics, self.health, node.node_id),
            logger,
        )
        surveys = (
            QueueSurvey(
                node.transitions, node.metrics, node.redis, node.order, time.monotonic
            ).sample,
            DiskSurvey(self._folders, node.state_dir / "spool", node.metrics).sample,
        )
        survey_threads = [
            SurveyThread(survey, self._is_on, node.redis.stopping, logger)
            for survey in surveys
        ]
        served = (self._server.serve, *(one.serve for one in survey_threads))
        self._threads = [
            threads.DaemonThread(serve, name)
            for name, serve in zip(
                ("http", "survey-queue", "survey-disk"), served, strict=True
            )
        ]

    def __repr__(self) -> str:
        return f"<Monitor {self._server!r}, {self.health!r}>"

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop serving, without waiting for the threads."""
        self._server.stop()

    def apply(self, settings: Settings) -> None:
        """Use reloaded settings."""
        self._settings = settings
        self._server.address = settings.metrics.listen

    def sample(self, status: NodeStatus) -> None:
        """Update the metrics and health from the state of the node."""
        node, metrics = self._node, self._node.metrics
        checks = self._checks(status)
        self.health.update(checks)
        metrics.ready.set(not any(check.problem for check in checks))
        metrics.redis_up.set(
            node.redis.error is None and node.redis.registered.is_set()
        )
        metrics.node_fault.set(status.fault_s is not None)
        metrics.slots.set(status.slots)
        metrics.limited_hosts.set(status.limited_hosts)
        metrics.low_on_space.set(bool(status.low))
        workers = list(node.pool.workers.values())
        sizes = [one.resident_bytes for one in workers]
        metrics.worker_memory.set(sum(sizes))
        metrics.worker_memory_max.set(max(sizes, default=0))
        set_each(
            metrics.workers,
            dict.fromkeys(WORKER_STATES, 0) | Counter(map(worker_state, workers)),
        )
        jobs = node.in_flight.all()
        set_each(
            metrics.in_flight,
            dict.fromkeys(IN_FLIGHT_STATES, 0) | Counter(map(in_flight_state, jobs)),
        )
        running = [one for one in jobs if in_flight_state(one) == "running"]
        metrics.connections.set(
            sum(one.progress.get("connections", 0) for one in running)
        )
        self.collector.set_log_dropped(node.log.dropped)

    def _checks(self, status: NodeStatus) -> list[HealthCheck]:
        redis, fault_s = self._node.redis, status.fault_s
        unregistered = (
            "" if redis.registered.is_set() else "this node is not registered there"
        )
        fault = (
            ""
            if fault_s is None
            else f"full or broken: no jobs until a write succeeds, tried in "
            f"{fault_s:.0f} s"
        )
        return [
            HealthCheck("redis", redis.error or unregistered),
            HealthCheck(
                "workers",
                "" if self._node.pool.capacity() else "no worker process is ready",
            ),
            HealthCheck("disk", fault),
            HealthCheck(
                "space",
                f"less than min_free is left for {', '.join(status.low)}"
                if status.low
                else "",
            ),
            HealthCheck(
                "accepting", "the service is stopping" if status.is_draining else ""
            ),
        ]

    def _is_on(self) -> bool:
        return self._server.address != ""

    def _folders(self) -> list[str]:
        return written_folders(self._settings.paths)


WORKER_STATES = ("starting", "idle", "busy", "retiring", "exiting")
IN_FLIGHT_STATES = ("waiting", "running", "recording")


def worker_state(handle: WorkerHandle) -> str:
    """Return the state of a worker: one of ``WORKER_STATES``."""
    if handle.kill_reason or handle.has_exited:
        return "exiting"
    if not handle.is_ready:
        return "starting"
    return "retiring" if handle.is_retiring else "busy" if handle.jobs else "idle"


def in_flight_state(job: InFlightJob) -> str:
    """Return the state of a job: ``waiting`` (no worker has the job), ``running`` (a
    worker has the job), or ``recording`` (Redis does not have the result yet)."""
    return (
        "recording"
        if job.is_recording
        else "running"
        if job.worker_pid is not None
        else "waiting"
    )


def written_folders(paths: PathSettings) -> list[str]:
    """Return the folders in which the download service writes."""
    roots = paths.allowed_roots.split(":") if paths.allowed_roots else []
    return sorted(
        {paths.download_dir, paths.state_dir, paths.log_dir, *filter(None, roots)}
    )


def http_routes(metrics: Metrics, health: Health, node_id: str) -> dict[str, Route]:
    """Return the handler of each path that the HTTP server serves."""
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
