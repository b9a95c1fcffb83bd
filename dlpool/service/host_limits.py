"""Configured limits and current holds of origin hosts.

A hold is a time in which no request goes to a host.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from dlpool.config import Settings
from dlpool.jobs.host_slots import HostLimit

MIN_EXTENSION_S = 1.0  # a hold that is extended by less is not reported again


class HostLimits:
    """The configured limits and the holds of hosts. Used by one thread.

    ``is_limited``: whether any host has a configured limit.
    """

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holds: dict[str, float] = {}  # when each ends, by authority
        self.apply(settings)

    def __repr__(self) -> str:
        return (
            f"<HostLimits {len(self._overrides)} overrides, held: "
            f"{sorted(self._holds)}>"
        )

    def apply(self, settings: Settings) -> None:
        """Use the limits of reloaded settings."""
        self._limits, self._overrides = settings.limits, settings.hosts
        self.is_limited = any(
            one.max_per_host or one.rate_per_host
            for one in (self._limits, *self._overrides.values())
        )

    def limit(self, url: str) -> HostLimit | None:
        """Return the limits of the host of a URL, None if the host has no limits.

        A limit that names no port is shared by all ports of the host.
        """
        if not self.is_limited:
            return None
        host, authority = _hostname(url), authority_of(url)
        if not host:
            return None
        name = authority if authority in self._overrides else host
        limits = (
            self._overrides.get(authority) or self._overrides.get(host) or self._limits
        )
        if limits.max_per_host is None and limits.rate_per_host is None:
            return None
        return HostLimit(name, limits.max_per_host, limits.rate_per_host)

    def hold(self, authority: str, seconds: float) -> bool:
        """Hold a host for ``seconds`` from now.

        Return False, and change nothing, if this would extend the hold of the host by
        at most ``MIN_EXTENSION_S`` seconds.
        """
        now = self._clock()
        self._holds = {
            name: until for name, until in self._holds.items() if until > now
        }
        authority = authority.lower()
        if now + seconds <= self._holds.get(authority, now) + MIN_EXTENSION_S:
            return False
        self._holds[authority] = now + seconds
        return True

    def hold_remaining_s(self, url: str) -> float:
        """Return the seconds until requests may go to the host of a URL.

        Return 0 if the host is not held.
        """
        if not self._holds:
            return 0.0
        return max(0.0, self._holds.get(authority_of(url), 0.0) - self._clock())


def authority_of(url: str) -> str:
    """Return the host and port as written in a URL, in lower case; '' if the URL has no
    host."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
