"""What a worker has counted since its start: it travels with each heartbeat, and the
supervisor adds up what is new.

Cumulative, so that a heartbeat that is lost takes nothing along, and one that comes
twice counts once.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping

RANGE_BOUNDS_S = (
    0.005,
    0.02,
    0.1,
    0.5,
    2.0,
    10.0,
    60.0,
    300.0,
    1800.0,
)  # upper ones; what takes longer comes after
RECEIVED, RANGE_SECONDS, LOG_DROPPED = "received", "range_seconds", "log_dropped"
_RETRY, _RANGE, _SCAN = "retry.", "range.", "scan."


class WorkerCounters:
    """Thread-safe; the lock guards the counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, name: str, amount: float) -> None:
        """So much more of it."""
        with self._lock:
            self._counts[name] += amount  # type: ignore[assignment]  # seconds are no whole numbers

    def count_retry(self, label: str) -> None:
        """A range is asked for again, for that reason."""
        self.add(_RETRY + label, 1)

    def count_scan(self, outcome: str) -> None:
        """Count a file that was checked for malware."""
        self.add(_SCAN + outcome, 1)

    def count_range(self, seconds: float) -> None:
        """A range has come, in so many seconds."""
        with self._lock:
            self._counts[f"{_RANGE}{bisect_left(RANGE_BOUNDS_S, seconds)}"] += 1
            self._counts[RANGE_SECONDS] += seconds  # type: ignore[assignment]

    def snapshot(self) -> dict[str, float]:
        """All counts, by name."""
        with self._lock:
            return dict(self._counts)


class CounterDeltas:
    """What is known of one worker's tally. Used by one thread."""

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def last(self, name: str) -> float:
        """One of its counts, as of its last heartbeat."""
        return self._known.get(name, 0.0)

    def update(self, counts: Mapping[str, float]) -> dict[str, float]:
        """What a heartbeat counts that is not known yet; two may come in the wrong
        order."""
        new = {name: count - self._known.get(name, 0) for name, count in counts.items()}
        new = {name: amount for name, amount in new.items() if amount > 0}
        self._known |= {name: counts[name] for name in new}
        return new


def retries_of(counts: Mapping[str, float]) -> dict[str, float]:
    """Ranges that were asked for again, by reason."""
    return {
        name.removeprefix(_RETRY): count
        for name, count in counts.items()
        if name.startswith(_RETRY)
    }


def scans_of(counts: Mapping[str, float]) -> dict[str, float]:
    """Return how many files were checked for malware, by outcome."""
    return {
        name.removeprefix(_SCAN): count
        for name, count in counts.items()
        if name.startswith(_SCAN)
    }


def ranges_of(counts: Mapping[str, float]) -> list[float]:
    """Ranges that have come: how many within each of ``RANGE_BOUNDS_S``, and how many
    after the last."""
    return [
        counts.get(f"{_RANGE}{index}", 0) for index in range(len(RANGE_BOUNDS_S) + 1)
    ]
