"""The state of the connection to Redis, and what the threads that use Redis share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from dlpool.dataclass import dataclass
from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.transitions import Transitions
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightTable
from dlpool.service.node.watchdog import ThreadLiveness
from dlpool.service.queue.messages import Message

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


class RedisState:
    """The state of the connection to Redis. Thread-safe; the lock guards the error and
    ``registered``.

    After an outage no job is claimed until the first heartbeat has renewed the leases.
    """

    def __init__(
        self,
        log: Logger,
        on_change: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Create the state; Redis counts as available until a call fails.

        ``on_change`` is called when Redis becomes available or unavailable.
        ``on_failure`` is called after each failed call, with the kind of the failure:
        unavailable, refused or other.
        """
        self._log = log
        self._on_change = on_change
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._error: str | None = None
        self.registered = threading.Event()
        self.stopping = threading.Event()
        self.liveness = ThreadLiveness()

    def __repr__(self) -> str:
        return (
            f"<RedisState "
            f"{'unavailable: ' + self._error if self._error else 'available'}>"
        )

    @property
    def error(self) -> str | None:
        """Return why Redis cannot be used, None if it can."""
        return self._error

    def keep_running(self) -> bool:
        """Mark the calling thread as alive, and return whether it shall continue."""
        self.liveness.mark_alive()
        return not self.stopping.is_set()

    def report_failure(self, error: QueueError) -> None:
        """Report a failed call: no job is claimed until a heartbeat succeeds."""
        self.count_failure(error)
        with self._lock:
            is_first, self._error = self._error is None, str(error)
            self.registered.clear()
        if is_first:
            self._log.warning("redis_unavailable", error=error)
            self._on_change()

    def count_failure(self, error: QueueError) -> None:
        """Count a failed call. The claims continue."""
        is_away, is_refused = (
            isinstance(error, QueueAway),
            isinstance(error, QueueRefused),
        )
        self._on_failure(
            "unavailable" if is_away else "refused" if is_refused else "other"
        )

    def report_heartbeat(self) -> None:
        """Report a successful heartbeat: the supervisor is registered, and its leases
        are renewed."""
        with self._lock:
            was_away, self._error = self._error is not None, None
            self.registered.set()
        if was_away:
            self._log.info("redis_available")
            self._on_change()


@dataclass(frozen=True)
class QueueContext:
    """The objects and settings that the threads which talk to Redis share.

    ``lease_s`` and ``grace_s`` are settings, in seconds; ``order`` returns the setting
    ``order``, which a reload may change; ``post`` sends a message to the main thread.
    """

    transitions: Transitions
    sid: str
    in_flight: InFlightTable
    redis: RedisState
    log: Logger
    lease_s: float
    grace_s: float
    order: Callable[[], str]
    post: Callable[[Message], None]


class CallSpacing:
    """Keeps a minimum interval between the Redis calls of one thread.

    Work accumulates meanwhile, and each call handles more of it. The first call of a
    burst is not delayed.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._last = 0.0

    def wait(self) -> None:
        """Wait until the interval since the last call has passed."""
        early_s = self._last + self._interval_s - time.monotonic()
        if early_s > 0:
            time.sleep(early_s)
        self._last = time.monotonic()


class Backoff:
    """Doubles the delay between failed attempts of one thread, up to ``max_s``.
    ``stopping`` ends a delay early."""

    def __init__(self, stopping: threading.Event, max_s: float = BACKOFF_MAX_S) -> None:
        self._stopping = stopping
        self._max_s = max_s
        self._delay_s = BACKOFF_FIRST_S

    def wait(self) -> None:
        """Wait before the next attempt."""
        self._stopping.wait(self._delay_s)
        self._delay_s = min(self._max_s, self._delay_s * 2)

    def reset(self) -> None:
        """Start again with the shortest delay, after a success."""
        self._delay_s = BACKOFF_FIRST_S
