"""A limit on log lines that clients can cause at will: the first lines of a minute are
written, further ones are counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable

from dlpool.dataclass import dataclass

PERIOD_S = 60.0


@dataclass
class _Period:
    """The period of one key, from its first event to ``ends_at``. ``written`` and
    ``left_out`` are numbers of events."""

    ends_at: float
    written: int = 0
    left_out: int = 0


class LogLimiter:
    """A limiter of equal log events: at most ``burst`` events with the same key are
    written in a period. Thread-safe.

    A period ends at the first ``pop_counts`` after one minute. The lock guards the
    table. Use keys from a small set, such as a status and a label, never text from a
    client.
    """

    def __init__(self, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._clock = clock
        self._lock = threading.Lock()
        self._periods: dict[Hashable, _Period] = {}

    def allow(self, key: Hashable) -> bool:
        """Return whether to write an event with this key. If the result is False, count
        the event as left out."""
        with self._lock:
            period = self._periods.setdefault(key, _Period(self._clock() + PERIOD_S))
            if period.written < self._burst:
                period.written += 1
                return True
            period.left_out += 1
            return False

    def pop_counts(self, *, now: bool = False) -> list[tuple[Hashable, int]]:
        """Remove the periods that have lasted a minute; with ``now``, remove all
        periods. Return the keys of the removed periods in which events were left out,
        each with the number of these events."""
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
