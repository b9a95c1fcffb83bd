"""Limits that several threads share: bytes a second, a host's Retry-After, and whether our network is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

BURST_S = 0.25  # seconds' worth of bytes that an idle bucket may hold
NETWORK_MEMORY_S = 30.0  # for how long a failure says something about our network


class RateLimit:
    """A token bucket. Thread-safe; the lock guards the level and its time.

    ``rate`` in bytes/s; None lets everything pass.
    """

    def __init__(self, rate: int | None, clock: Callable[[], float]) -> None:
        self.rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._level = 0.0
        self._at = clock()

    def spend(self, size: int) -> float:
        """Take ``size`` bytes out and return the seconds to wait before the next read; the level may go negative."""
        if self.rate is None:
            return 0.0
        with self._lock:
            now = self._clock()
            self._level = min(self.rate * BURST_S, self._level + (now - self._at) * self.rate)
            self._at = now
            self._level -= size
            return max(0.0, -self._level / self.rate)


class HostGate:
    """When each host may be asked again, for all downloads of a process. Thread-safe; the lock guards the holds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._holds: dict[str, float] = {}

    def hold(self, host: str, seconds: float) -> None:
        """Nobody asks ``host`` for that long; a longer hold that stands already stays."""
        with self._lock:
            now = self._clock()
            self._holds = {name: until for name, until in self._holds.items() if until > now}
            self._holds[host] = max(self._holds.get(host, 0.0), now + seconds)

    def wait_s(self, host: str) -> float:
        """Seconds until ``host`` may be asked; 0 is now."""
        if not self._holds:
            return 0.0
        with self._lock:
            return max(0.0, self._holds.get(host, 0.0) - self._clock())


class NetworkWatch:
    """Tells "that server is away" from "our own network is away". Thread-safe; the lock guards the two tables.

    The network counts as away when two hosts or more cannot be resolved or reached and none has answered since, or
    when a host that had answered this process can no longer be resolved or routed to.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[str, float] = {}
        self._answered: set[str] = set()

    def answered(self, host: str) -> None:
        """``host`` gave any answer: our network is there."""
        if host in self._answered and not self._failed:
            return
        with self._lock:
            self._answered.add(host)
            self._failed.clear()

    def failed(self, host: str) -> None:
        """``host`` could not be resolved or routed to."""
        with self._lock:
            self._failed[host] = self._clock()

    def is_away(self, host: str) -> bool:
        """Whether a failure to reach ``host`` should be put down to our own network."""
        with self._lock:
            recent = {name for name, at in self._failed.items() if self._clock() - at < NETWORK_MEMORY_S}
            return host in recent and (len(recent) > 1 or host in self._answered)
