"""Lines of the log that strangers can cause at will: the first few are written, the
others are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

PERIOD_S = 60.0


@dataclass
class _Period:
    """From the first event of a key on. ``seen`` events have been written, ``left_out``
    ones counted."""

    ends_at: float
    seen: int = 0
    left_out: int = 0


class LogLimiter:
    """Decides which of many like events are written: ``burst`` of each key a minute.
    Thread-safe.

    Keys are of a small set, such as a status and a label: what a stranger wrote is
    none.
    """

    def __init__(self, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()  # guards the table
        self._periods: dict[Hashable, _Period] = {}

    def allow(self, key: Hashable) -> bool:
        """Return whether the event is to be written; else it is counted."""
        with self._lock:
            period = self._periods.setdefault(key, _Period(self._clock() + PERIOD_S))
            if period.seen < self._burst:
                period.seen += 1
                return True
            period.left_out += 1
            return False

    def pop_counts(self, *, now: bool = False) -> list[tuple[Hashable, int]]:
        """Return the numbers of events that were left out, of the periods that are
        over; ``now``: of all."""
        with self._lock:
            over = [
                key
                for key, period in self._periods.items()
                if now or self._clock() >= period.ends_at
            ]
            periods = {key: self._periods.pop(key) for key in over}
        return [
            (key, period.left_out) for key, period in periods.items() if period.left_out
        ]
