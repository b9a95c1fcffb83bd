"""Renders the metrics of dlpool-web in Prometheus text format; docs/metrics.md lists
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from dlpool.dataclass import dataclass
from dlpool.scan.guard import OUTCOMES
from dlpool.storage.values import HEALTHY, UNHEALTHY, WARNING
from dlpool.web.counters import BUCKETS

_HEALTHS = (HEALTHY, WARNING, UNHEALTHY)
_HEALTH = (
    "0 healthy, 1 above disk_warn, 2 above disk_refuse or not writable: no new uploads"
)


@dataclass(frozen=True)
class MetricsSnapshot:
    """All values of one scrape.

    ``counts``: the totals of ``counters``; ``tasks``: the number of tasks by state;
    ``chunks``: the number of chunks; ``size``: bytes of the files of all tasks;
    ``memory``: resident bytes by pid; ``disks``: space of the disk of each folder;
    ``health``: health of each folder. The key of a folder is the name of its setting:
    ``upload_dir`` or ``merged_dir``.
    """

    counts: Mapping[str, float]
    tasks: Mapping[str, int]
    chunks: int
    size: int
    memory: Mapping[str, int]
    disks: Mapping[str, Mapping[str, Any]]
    health: Mapping[str, str]


class _Collector(Collector):
    def __init__(self, found: MetricsSnapshot) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        yield from self._uploads()
        yield from self._outcomes()
        yield from self._requests()
        yield from self._machine()

    def _uploads(self) -> Iterator[Metric]:
        tasks = GaugeMetricFamily(
            "dlpool_upload_tasks", "Upload tasks by state", labels=["state"]
        )
        for state, number in self._found.tasks.items():
            tasks.add_metric([state], number)
        yield tasks
        yield GaugeMetricFamily(
            "dlpool_upload_chunks_stored", "Stored chunks", self._found.chunks
        )
        for name, text in (("chunks", "Chunks"), ("bytes", "Bytes of chunks")):
            count = self._found.counts.get(name, 0)
            yield CounterMetricFamily(
                f"dlpool_upload_{name}", f"{text} received", count
            )

    def _outcomes(self) -> Iterator[Metric]:
        """Yield the counters with the label ``outcome``, including those that are 0."""
        published = ("published", "lost")
        for name, text, key, outcomes in (
            ("upload_events", "Upload events sent to Redis", "events", published),
            ("web_audit_events", "Audit events sent to Redis", "audit", published),
            ("upload_scans", "Files checked for malware", "scan", OUTCOMES),
        ):
            family = CounterMetricFamily(f"dlpool_{name}", text, labels=["outcome"])
            for outcome in outcomes:
                count = self._found.counts.get(f"{key} {outcome}", 0)
                family.add_metric([outcome], count)
            yield family

    def _requests(self) -> Iterator[Metric]:
        errors = CounterMetricFamily(
            "dlpool_web_errors", "Error responses", labels=["code"]
        )
        for key in sorted(self._found.counts):
            if key.startswith("error "):
                errors.add_metric([key.removeprefix("error ")], self._found.counts[key])
        yield errors
        yield self._durations()

    def _machine(self) -> Iterator[Metric]:
        found = self._found
        memory = sum(found.memory.values())
        text = "Resident memory of all workers"
        yield GaugeMetricFamily("dlpool_web_memory_bytes", text, memory)
        workers = len(found.memory)
        yield GaugeMetricFamily("dlpool_web_workers", "Worker processes", workers)
        for name in ("free", "total"):
            disk = GaugeMetricFamily(
                f"dlpool_web_disk_{name}_bytes", f"Disk: {name}", labels=["folder"]
            )
            for folder, volume in found.disks.items():
                disk.add_metric([folder], volume[name])
            yield disk
        health = GaugeMetricFamily(
            "dlpool_web_disk_health", f"Disk: {_HEALTH}", labels=["folder"]
        )
        for folder, status in found.health.items():
            health.add_metric([folder], _HEALTHS.index(status))
        yield health

    def _durations(self) -> Metric:
        counts, buckets, total = self._found.counts, [], 0.0
        for bound in (*map(str, BUCKETS), "+Inf"):
            total += counts.get(f"took {bound}", 0)
            buckets.append((bound, total))
        durations = HistogramMetricFamily(
            "dlpool_web_request_duration_seconds", "Time until the response is ready"
        )
        durations.add_metric([], buckets, counts.get("seconds", 0))
        return durations


def render(found: MetricsSnapshot) -> tuple[bytes, str]:
    """Return the metrics in Prometheus text format, and the media type of this text."""
    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry), CONTENT_TYPE_LATEST
