"""Counters of a worker, sent with each status frame.

The counters are cumulative: if a status frame is lost, no count is lost, and if a
frame arrives twice, its events count once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping

# upper bounds of a histogram's buckets
RANGE_BOUNDS_S = 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0, 1800.0
RECEIVED, RANGE_SECONDS, LOG_DROPPED = "received", "range_seconds", "log_dropped"
_RETRY, _RANGE, _SCAN = "retry.", "range.", "scan."  # prefixes


class WorkerCounters:
    """Counts events in a worker. Thread-safe; the lock guards the counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[str, float] = defaultdict(float)

    def add(self, name: str, amount: float) -> None:
        """Add ``amount`` to the counter ``name``."""
        with self._lock:
            self._counts[name] += amount

    def count_retry(self, label: str) -> None:
        """Count the retry of a range, by the label of the error."""
        self.add(_RETRY + label, 1)

    def count_scan(self, outcome: str) -> None:
        """Count a file that was scanned for malware."""
        self.add(_SCAN + outcome, 1)

    def count_range(self, seconds: float) -> None:
        """Count a range that was fetched in ``seconds``."""
        with self._lock:
            self._counts[f"{_RANGE}{bisect_left(RANGE_BOUNDS_S, seconds)}"] += 1
            self._counts[RANGE_SECONDS] += seconds

    def snapshot(self) -> dict[str, float]:
        """Return all counters by name."""
        with self._lock:
            return dict(self._counts)


class CounterDeltas:
    """The counters of one worker as last reported. Used by one thread."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def last(self, name: str) -> float:
        """Return a counter as of the last report."""
        return self._last.get(name, 0.0)

    def update(self, counters: Mapping[str, float]) -> dict[str, float]:
        """Return by how much the counters have grown since the last report.

        Reports can arrive out of order: an older report changes nothing.
        """
        deltas = {
            name: count - self._last.get(name, 0) for name, count in counters.items()
        }
        deltas = {name: amount for name, amount in deltas.items() if amount > 0}
        self._last |= {name: counters[name] for name in deltas}
        return deltas


def retries_of(counts: Mapping[str, float]) -> dict[str, float]:
    """Return the number of retried ranges, by label."""
    return {
        name.removeprefix(_RETRY): count
        for name, count in counts.items()
        if name.startswith(_RETRY)
    }


def scans_of(counts: Mapping[str, float]) -> dict[str, float]:
    """Return the number of files that were scanned for malware, by outcome."""
    return {
        name.removeprefix(_SCAN): count
        for name, count in counts.items()
        if name.startswith(_SCAN)
    }


def ranges_of(counts: Mapping[str, float]) -> list[float]:
    """Return the number of fetched ranges in each bucket of ``RANGE_BOUNDS_S``.

    The last number counts the ranges above the last bound.
    """
    return [
        counts.get(f"{_RANGE}{index}", 0) for index in range(len(RANGE_BOUNDS_S) + 1)
    ]
