"""The metrics of a supervisor, and their text for Prometheus. In a supervisor, only
this module imports prometheus-client.

No label has the URL, path or id of a job: the number of series does not grow with the
number of jobs.
"""

from __future__ import annotations

import math
import platform
import threading
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from dlpool.errors import FailJob
from dlpool.scan.guard import OUTCOMES
from dlpool.version import __version__

MIB = 1024 * 1024
_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
_CALL_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)
_SPEEDS = tuple(
    float(MIB * step) for step in (0.1, 0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000)
)

# the start time of each counter would be one more series
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The metrics of a supervisor, as attributes. They are objects of
    prometheus-client, and therefore thread-safe."""

    def __init__(self, range_bounds_s: Sequence[float]) -> None:
        """Create all metrics.

        Workers count ranges in buckets by duration. ``range_bounds_s``: the upper
        bounds of these buckets, in seconds.
        """
        self._registry = CollectorRegistry()
        self._ranges = MergedHistogram(
            "dlpool_range_seconds",
            "Time of a range, from its request to its last byte.",
            range_bounds_s,
        )
        self._registry.register(self._ranges)
        ProcessCollector(registry=self._registry)
        self._gauge("build_info", "Always 1.", "version", "python").labels(
            __version__, platform.python_version()
        ).set(1)
        self._declare_work()
        self._declare_node()
        self._declare_queue()

    def _declare_work(self) -> None:
        self.jobs = self._counter(
            "jobs", "Jobs that ended on this node.", "outcome", "label"
        )
        self.requeued = self._counter(
            "requeued_jobs",
            "Runs and claims that did not end the job.",
            "disposition",
            "label",
        )
        self.job_seconds = self._histogram(
            "job_seconds", "Time of a job in a worker.", _SECONDS, "attempt_result"
        )
        self.job_speed = self._histogram(
            "job_speed_bytes_per_second",
            "Speed of successful jobs that received at least 1 MiB.",
            _SPEEDS,
        )
        self.received = self._counter(
            "received_bytes", "Bytes of files received from the network."
        )
        self.retries = self._counter(
            "range_retries", "Ranges that were requested again.", "reason"
        )
        self.scans = self._counter(
            "scans", "Files scanned for malware before publishing.", "outcome"
        )
        self.redis_seconds = self._histogram(
            "redis_call_seconds",
            "Time of a script call in Redis.",
            _CALL_SECONDS,
            "call",
        )
        self.redis_errors = self._counter(
            "redis_errors", "Failed calls of Redis.", "kind"
        )
        self.worker_starts = self._counter("worker_starts", "Worker processes started.")
        self.worker_exits = self._counter(
            "worker_exits", "Worker processes that exited.", "reason"
        )
        self.log_dropped = self._counter(
            "log_dropped_records", "Log records that could not be written."
        )
        self._create_expected_series()

    def _create_expected_series(self) -> None:
        """Create counters at 0, so that their first event is an increase for
        Prometheus."""
        self.jobs.labels("success", "")
        for label in {"poison", *(kind.label for kind in FailJob.__subclasses__())}:
            self.jobs.labels("failed", label)
        for outcome in OUTCOMES:
            self.scans.labels(outcome)
        for reason in ("exited", "died", "killed"):
            self.worker_exits.labels(reason)
        for kind in ("unavailable", "refused", "other"):
            self.redis_errors.labels(kind)

    def _declare_node(self) -> None:
        self.ready = self._gauge(
            "ready", "1 while this node takes jobs, as /readyz says."
        )
        self.redis_up = self._gauge("redis_up", "1 while Redis answers.")
        self.low_on_space = self._gauge(
            "low_on_space", "1 while jobs wait for disk space (min_free)."
        )
        self.node_fault = self._gauge(
            "node_fault", "1 while no jobs are taken because of a full or broken disk."
        )
        self.slots = self._gauge("slots", "Jobs that the workers can run at once.")
        self.limited_hosts = self._gauge(
            "limited_hosts",
            "Origin hosts that get fewer jobs at once after refusing some.",
        )
        self.connections = self._gauge(
            "connections", "Connections of running jobs to their servers."
        )
        self.in_flight = self._gauge("in_flight_jobs", "Jobs of this node.", "state")
        self.workers = self._gauge("workers", "Worker processes.", "state")
        self.worker_memory = self._gauge(
            "workers_resident_bytes", "Resident memory of all workers."
        )
        self.worker_memory_max = self._gauge(
            "worker_resident_bytes_max", "Resident memory of the largest worker."
        )
        self.disk_free = self._gauge(
            "disk_free_bytes", "Bytes that this user may still write.", "folder"
        )
        self.disk_size = self._gauge(
            "disk_size_bytes", "Size of the file system.", "folder"
        )
        self.spooled = self._gauge(
            "spooled_results", "Job results on disk that Redis does not have yet."
        )

    def _declare_queue(self) -> None:
        self.queue_jobs = self._gauge(
            "queue_jobs", "Jobs of the complete queue.", "state"
        )
        self.queue_oldest = self._gauge(
            "queue_oldest_seconds",
            "Age of the job that has waited longest; a lower bound for the intake "
            "list.",
            "list",
        )
        self.queue_hosts = self._gauge(
            "queue_hosts",
            "Origin hosts that jobs wait for, or that asked for a pause.",
            "state",
        )
        self.queue_records = self._gauge(
            "queue_failure_records", "Failure records that clients see."
        )
        self.queue_supervisors = self._gauge(
            "queue_supervisors", "Running supervisors."
        )
        self.queue_paused = self._gauge("queue_paused", "1 while the queue is paused.")
        self.clear_queue()

    def observe_redis_call(self, call: str, seconds: float) -> None:
        """Record the duration of a script call in Redis."""
        self.redis_seconds.labels(call).observe(seconds)

    def count_redis_failure(self, kind: str) -> None:
        """Count a failed call of Redis; ``kind`` is unavailable, refused or other."""
        self.redis_errors.labels(kind).inc()

    def clear_queue(self) -> None:
        """Mark the state of the queue as unknown. Metrics without labels become NaN,
        metrics with labels lose all series."""
        for labelled in (self.queue_jobs, self.queue_oldest, self.queue_hosts):
            labelled.clear()
        for single in (self.queue_records, self.queue_supervisors, self.queue_paused):
            single.set(math.nan)

    def add_ranges(self, counts: Sequence[float], seconds: float) -> None:
        """Add ranges to the histogram: their number in each bucket, and their total
        time."""
        self._ranges.add(counts, seconds)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that the header ``Accept`` asks for, and its
        content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"dlpool_{name}", help, labels, registry=self._registry)

    def _gauge(self, name: str, help: str, *labels: str) -> Gauge:
        return Gauge(f"dlpool_{name}", help, labels, registry=self._registry)

    def _histogram(
        self, name: str, help: str, bounds: Sequence[float], *labels: str
    ) -> Histogram:
        return Histogram(
            f"dlpool_{name}", help, labels, buckets=bounds, registry=self._registry
        )


def set_each(gauge: Gauge, values: Mapping[str, float]) -> None:
    """Set a gauge that has one label. ``values``: numbers by the value of the label."""
    for label, value in values.items():
        gauge.labels(label).set(value)


class MergedHistogram(Collector):
    """A histogram that adds up counts from other processes. Thread-safe; the lock
    guards the counts."""

    def __init__(self, name: str, help: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._help = help
        self._bounds = [*map(str, bounds), "+Inf"]
        self._lock = threading.Lock()
        self._counts = [0.0] * len(self._bounds)
        self._sum = 0.0

    def add(self, counts: Sequence[float], total: float) -> None:
        """Add ``counts`` to the buckets, and ``total`` to the sum. The last bucket has
        no upper bound."""
        with self._lock:
            self._counts = [
                mine + more for mine, more in zip(self._counts, counts, strict=True)
            ]
            self._sum += total

    def collect(self) -> Iterable[Metric]:
        """Return the cumulative buckets; prometheus-client calls this."""
        with self._lock:
            counts, total = self._counts, self._sum
        buckets = [
            (bound, sum(counts[: index + 1]))
            for index, bound in enumerate(self._bounds)
        ]
        yield HistogramMetricFamily(
            self._name, self._help, buckets=buckets, sum_value=total
        )
