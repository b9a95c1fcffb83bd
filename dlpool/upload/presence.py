"""Whether a server is there."""

from __future__ import annotations

from collections.abc import Callable


class ServerAvailability:
    """Thread-safe: its two attributes are only ever replaced, and no decision needs
    both at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._was_there = False
        self._missed_since: float | None = None

    def record_success(self) -> None:
        """It did what it was asked to."""
        self._was_there, self._missed_since = True, None

    def unavailable_s(self) -> float | None:
        """Seconds since it was first missed, 0 for the first time; None: it never was
        there, so far as we know."""
        if not self._was_there:
            return None
        now, since = self._clock(), self._missed_since
        if since is None:
            self._missed_since = since = now
        return now - since
