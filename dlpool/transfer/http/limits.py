"""Limits that several threads share: bytes a second, a host's Retry-After, and whether
our network is there."""

from __future__ import annotations

import threading
from collections.abc import Callable

BURST_S = 0.25  # seconds' worth of bytes that an idle bucket may hold
LEAST_READ = 1024  # bytes
NETWORK_MEMORY_S = 30.0  # for how long a failure says something about our network


class RateLimit:
    """A token bucket. Thread-safe; the lock guards the rate, the level and its time.

    ``rate`` in bytes/s, may be changed under way; None lets everything pass.
    """

    def __init__(self, rate: int | None, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._lock = threading.Lock()
        self._level = 0.0
        self._at = clock()

    @property
    def rate(self) -> int | None:
        return self._rate

    @rate.setter
    def rate(self, rate: int | None) -> None:
        with self._lock:
            self._fill()
            if rate is None or self._rate is None:
                self._level = 0.0
            elif (
                rate < self._rate
            ):  # nobody waits longer for what was read at the old rate
                self._level *= rate / self._rate
            self._rate = rate

    def spend(self, size: int) -> float:
        """Take ``size`` bytes out and return the seconds to wait before the next read;
        the level may go negative."""
        if self._rate is None:
            return 0.0
        with self._lock:
            self._fill()
            if self._rate is None:
                return 0.0
            self._level -= size
            return max(0.0, -self._level / self._rate)

    def _fill(self) -> None:
        now = self._clock()
        if self._rate is not None:
            self._level = min(
                self._rate * BURST_S, self._level + (now - self._at) * self._rate
            )
        self._at = now


class RateLimits:
    """The buckets that a download's bytes are taken out of: its own, and one that it
    shares. Thread-safe."""

    def __init__(self, *limits: RateLimit) -> None:
        self._limits = limits

    def max_read(self, size: int) -> int:
        """How much of ``size`` bytes one read may bring, so that its wait is short."""
        rates = [rate for limit in self._limits if (rate := limit.rate) is not None]
        return max(LEAST_READ, min(size, min(rates) // 10)) if rates else size

    def spend(self, size: int) -> float:
        """Take ``size`` bytes out of each and return the seconds to wait before the
        next read."""
        return max(limit.spend(size) for limit in self._limits)


class HostHolds:
    """When each host may be asked again, for all downloads of a process. Thread-safe;
    the lock guards the holds.

    ``tell`` is called with what a server has said, so that other processes may hold
    too.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        notify: Callable[[str, float], object] = lambda *_: None,
    ) -> None:
        self._clock = clock
        self._tell = notify
        self._lock = threading.Lock()
        self._holds: dict[str, float] = {}

    def hold(self, host: str, seconds: float) -> None:
        """The server said so: nobody asks ``host`` for that long; a longer hold that
        stands already stays."""
        self.record(host, seconds)
        self._tell(host, seconds)

    def record(self, host: str, seconds: float) -> None:
        """The same, heard from another process."""
        with self._lock:
            now = self._clock()
            self._holds = {
                name: until for name, until in self._holds.items() if until > now
            }
            self._holds[host] = max(self._holds.get(host, 0.0), now + seconds)

    def wait_s(self, host: str) -> float:
        """Seconds until ``host`` may be asked; 0 is now."""
        until = self._holds.get(
            host
            # without the lock: ``learn`` replaces the table by one that has all valid
            # holds
        )
        return 0.0 if until is None else max(0.0, until - self._clock())


class NetworkMonitor:
    """Tells "that server is away" from "our own network is away". Thread-safe; the lock
    guards the two tables.

    The network counts as away when two hosts or more cannot be resolved or reached and
    none has answered since, or when a host that had answered this process can no longer
    be resolved or routed to.
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
            recent = {
                name
                for name, at in self._failed.items()
                if self._clock() - at < NETWORK_MEMORY_S
            }
            return host in recent and (len(recent) > 1 or host in self._answered)
