"""Renders the metrics of dlpool-web in Prometheus text format; docs/metrics.md lists
them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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

    ``counts``: see ``counters``; ``memory``: bytes by pid; ``disks`` and ``health``: by
    setting.
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
        found, counts = self._found, self._found.counts
        tasks = GaugeMetricFamily(
            "dlpool_upload_tasks", "Upload tasks by state", labels=["state"]
        )
        for state, number in found.tasks.items():
            tasks.add_metric([state], number)
        yield tasks
        yield GaugeMetricFamily(
            "dlpool_upload_chunks_stored", "Stored chunks", found.chunks
        )
        yield CounterMetricFamily(
            "dlpool_upload_chunks", "Chunks received", counts.get("chunks", 0)
        )
        yield CounterMetricFamily(
            "dlpool_upload_bytes", "Bytes of chunks received", counts.get("bytes", 0)
        )
        events = CounterMetricFamily(
            "dlpool_upload_events",
            "Upload events, published or lost",
            labels=["outcome"],
        )
        for outcome in ("told", "lost"):
            events.add_metric([outcome], counts.get(f"events {outcome}", 0))
        yield events
        audit = CounterMetricFamily(
            "dlpool_web_audit_events",
            "Audit events, published to Redis or lost",
            labels=["outcome"],
        )
        for outcome in ("told", "lost"):
            audit.add_metric([outcome], counts.get(f"audit {outcome}", 0))
        yield audit
        scans = CounterMetricFamily(
            "dlpool_upload_scans",
            "Files checked for malware",
            labels=["outcome"],
        )
        for outcome in OUTCOMES:
            scans.add_metric([outcome], counts.get(f"scan {outcome}", 0))
        yield scans
        errors = CounterMetricFamily(
            "dlpool_web_errors", "Error responses", labels=["code"]
        )
        for key in sorted(counts):
            if key.startswith("error "):
                errors.add_metric([key.removeprefix("error ")], counts[key])
        yield errors
        yield self._durations()
        yield GaugeMetricFamily(
            "dlpool_web_memory_bytes",
            "Resident memory of all workers",
            sum(found.memory.values()),
        )
        yield GaugeMetricFamily(
            "dlpool_web_workers", "Worker processes", len(found.memory)
        )
        for name in ("free", "total"):
            disk = GaugeMetricFamily(
                f"dlpool_web_disk_{name}_bytes", f"Disk: {name}", labels=["folder"]
            )
            for folder, room in found.disks.items():
                disk.add_metric([folder], room[name])
            yield disk
        health = GaugeMetricFamily(
            "dlpool_web_disk_health", f"Disk: {_HEALTH}", labels=["folder"]
        )
        for folder, said in found.health.items():
            health.add_metric([folder], _HEALTHS.index(said))
        yield health

    def _durations(self) -> Metric:
        counts, buckets, sum_so_far = self._found.counts, [], 0.0
        for bound in (*map(str, BUCKETS), "+Inf"):
            sum_so_far += counts.get(f"took {bound}", 0)
            buckets.append((bound, sum_so_far))
        durations = HistogramMetricFamily(
            "dlpool_web_request_duration_seconds", "Time until the response is ready"
        )
        durations.add_metric([], buckets, counts.get("seconds", 0))
        return durations


def render(found: MetricsSnapshot) -> tuple[bytes, str]:
    """Return the text and its media type."""
    registry = CollectorRegistry()
    registry.register(_Collector(found))
    return generate_latest(registry), CONTENT_TYPE_LATEST
