"""Limits that threads share: bandwidth, Retry-After, a network outage."""

from __future__ import annotations

import threading
from collections.abc import Callable

BURST_S = 0.25  # an idle bucket holds the bytes of this many seconds
LEAST_READ = 1024  # bytes of one read, whatever the limits
NETWORK_MEMORY_S = 30.0  # seconds for which a failure to reach a host counts


class RateLimit:
    """A token bucket; its level is the number of bytes that may be read at once.

    ``rate``: bytes per second, may be changed at any time; None means no limit.
    Thread-safe; the lock guards the rate, the level and the time of the level.
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
            elif rate < self._rate:
                # the wait for bytes already read does not become longer
                self._level *= rate / self._rate
            self._rate = rate

    def spend(self, size: int) -> float:
        """Take ``size`` bytes and return the seconds to wait before the next read.

        The level may become negative; the wait lasts until it is 0 again.
        """
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
    """The rate limits that apply to one download: its own and the shared one.

    Thread-safe.
    """

    def __init__(self, *limits: RateLimit) -> None:
        self._limits = limits

    @property
    def is_limited(self) -> bool:
        """Whether any of the limits has a rate."""
        return any(limit.rate is not None for limit in self._limits)

    def max_read(self, size: int) -> int:
        """Return how many bytes one read may take; without a rate, ``size``.

        With a rate, this is what the lowest rate allows in 0.1 s, at most ``size``. So
        waits stay short. If the result would be below ``LEAST_READ``, it is
        ``LEAST_READ``, even if ``size`` is smaller.
        """
        rates = [rate for limit in self._limits if (rate := limit.rate) is not None]
        return max(LEAST_READ, min(size, min(rates) // 10)) if rates else size

    def spend(self, size: int) -> float:
        """Take ``size`` bytes from each bucket; return the longest wait in seconds."""
        return max(limit.spend(size) for limit in self._limits)


class HostHolds:
    """The hosts to which a process must send no requests before a certain time.

    Thread-safe; the lock guards the table. ``notify`` is called with each hold that a
    server has demanded from this process, so that other processes can apply it.
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
        """Forbid requests to ``host`` for ``seconds`` seconds, as its server demands.

        Calls ``notify``. An existing longer hold stays.
        """
        self.record(host, seconds)
        self._tell(host, seconds)

    def record(self, host: str, seconds: float) -> None:
        """Apply a hold that another process has reported; do not call ``notify``."""
        with self._lock:
            now = self._clock()
            self._holds = {
                name: until for name, until in self._holds.items() if until > now
            }
            self._holds[host] = max(self._holds.get(host, 0.0), now + seconds)

    def wait_s(self, host: str) -> float:
        """Return the seconds until requests to ``host`` are allowed; 0 means now."""
        # without the lock: ``record`` replaces the table with a complete one
        until = self._holds.get(host)
        return 0.0 if until is None else max(0.0, until - self._clock())


class NetworkMonitor:
    """A monitor that distinguishes an unreachable server from a local network outage.

    Thread-safe; the lock guards both tables. A failure means that a host could not
    be resolved or routed to; it counts for ``NETWORK_MEMORY_S`` seconds, or until any
    host responds. The local network counts as down after failures of two or more hosts,
    or after the failure of a host that had responded to this process.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failed: dict[str, float] = {}
        self._answered: set[str] = set()

    def answered(self, host: str) -> None:
        """Record that ``host`` responded: the network is up."""
        if host in self._answered and not self._failed:
            return
        with self._lock:
            self._answered.add(host)
            self._failed.clear()

    def failed(self, host: str) -> None:
        """Record that ``host`` could not be resolved or routed to."""
        with self._lock:
            self._failed[host] = self._clock()

    def is_away(self, host: str) -> bool:
        """Return whether a failure to reach ``host`` is due to the local network."""
        with self._lock:
            recent = {
                name
                for name, at in self._failed.items()
                if self._clock() - at < NETWORK_MEMORY_S
            }
            return host in recent and (len(recent) > 1 or host in self._answered)
