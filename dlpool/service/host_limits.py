"""What is known of origin hosts: what each is spared, and until when it does not want
to be asked."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from dlpool.config import Settings
from dlpool.jobs.host_slots import HostLimit

NEWS_S = 1.0  # a hold that is longer by less says nothing new


class HostLimits:
    """Used by one thread."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holds: dict[str, float] = {}
        self.apply(settings)

    def __repr__(self) -> str:
        return (
            f"<Hosts {len(self._overrides)} with limits of their own, held: "
            f"{sorted(self._holds)}>"
        )

    def apply(self, settings: Settings) -> None:
        """Use the limits of these settings from now on."""
        self._limits, self._overrides = settings.limits, settings.hosts
        self._is_limited = any(
            one.max_per_host or one.rate_per_host
            for one in (self._limits, *self._overrides.values())
        )

    def limit(self, url: str) -> HostLimit | None:
        """What the host of a URL is spared, None if nothing. One limit of a host counts
        for all its ports."""
        if not self._is_limited:
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
        """Nobody asks it for that long. Returns whether that is news."""
        now = self._clock()
        self._holds = {
            name: until for name, until in self._holds.items() if until > now
        }
        authority = authority.lower()
        if now + seconds <= self._holds.get(authority, now) + NEWS_S:
            return False
        self._holds[authority] = now + seconds
        return True

    def hold_remaining_s(self, url: str) -> float:
        """Seconds until the host of a URL may be asked; 0 is now."""
        if not self._holds:
            return 0.0
        return max(0.0, self._holds.get(authority_of(url), 0.0) - self._clock())


def authority_of(url: str) -> str:
    """Host and port as a URL names them; '' for a text that names none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _hostname(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
