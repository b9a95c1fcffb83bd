"""Whether Redis is there, as all threads of a supervisor see it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.observe.log import Logger
from dlpool.service.node.watchdog import ThreadLiveness

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


class RedisState:
    """Thread-safe; the lock guards whether Redis is away and whether we are
    registered.

    After an absence everybody waits for the first beat: it renews the leases before
    anything else is done.
    """

    def __init__(
        self, log: Logger, on_change: Callable[[], None], failed: Callable[[str], None]
    ) -> None:
        """``failed`` hears of each call that failed: away, refused or other."""
        self._log = log
        self._on_change = on_change
        self._failed = failed
        self._lock = threading.Lock()
        self._error: str | None = None
        self.registered = threading.Event()
        self.stopping = threading.Event()
        self.liveness = ThreadLiveness()

    def __repr__(self) -> str:
        return f"<Link {'away: ' + self._error if self._error else 'there'}>"

    @property
    def error(self) -> str | None:
        """Why Redis cannot be used now, None if it can."""
        return self._error

    def keep_running(self) -> bool:
        """Whether the calling thread shall go round once more, which is its sign of
        life."""
        self.liveness.mark_alive()
        return not self.stopping.is_set()

    def report_failure(self, error: QueueError) -> None:
        """A call has failed."""
        self.count_failure(error)
        with self._lock:
            is_news, self._error = self._error is None, str(error)
            self.registered.clear()
        if is_news:
            self._log.warning("redis_away", error=error)
            self._on_change()

    def count_failure(self, error: QueueError) -> None:
        """The same, where it says nothing about the others."""
        self._failed(
            "away"
            if isinstance(error, QueueAway)
            else "refused"
            if isinstance(error, QueueRefused)
            else "other"
        )

    def report_heartbeat(self) -> None:
        """A beat has come through: we are registered, our leases are renewed."""
        with self._lock:
            was_away, self._error = self._error is not None, None
            self.registered.set()
        if was_away:
            self._log.info("redis_back")
            self._on_change()


class CallSpacing:
    """Keeps the calls of one thread apart when there are many, so that each does more;
    the first is not late."""

    def __init__(self, apart_s: float) -> None:
        self._apart_s = apart_s
        self._last = 0.0

    def wait(self) -> None:
        """Wait until the next call may be made."""
        early_s = self._last + self._apart_s - time.monotonic()
        if early_s > 0:
            time.sleep(early_s)
        self._last = time.monotonic()


class Backoff:
    """Waits between tries of one thread, longer and longer, until something succeeds or
    all stop."""

    def __init__(self, stopping: threading.Event, max_s: float = BACKOFF_MAX_S) -> None:
        self._stopping = stopping
        self._max_s = max_s
        self._delay_s = BACKOFF_FIRST_S

    def wait(self) -> None:
        """Wait for the next try."""
        self._stopping.wait(self._delay_s)
        self._delay_s = min(self._max_s, self._delay_s * 2)

    def reset(self) -> None:
        """The try succeeded."""
        self._delay_s = BACKOFF_FIRST_S
