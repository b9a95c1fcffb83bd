"""The queue's time: it follows the clock of Redis, but does not go back when that clock
is set back by two seconds or more. The Lua scripts store it (``queue_time`` in
shared.lua).

All times in dlpool's own keys are queue times. For display they are converted to the
present clock of Redis.
"""

from __future__ import annotations

from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.jobs.connection import translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.redis_values import to_int


@dataclass(frozen=True)
class QueueTime:
    """A reading of the queue's time. ``now_ms``: the time, in ms; ``ahead_ms``: its
    lead over the clock of Redis."""

    now_ms: int
    ahead_ms: int

    @property
    def clock_ms(self) -> int:
        """The clock of Redis, in ms since 1970."""
        return self.now_ms - self.ahead_ms

    @classmethod
    def of(
        cls, clock: tuple[int, int], stored: tuple[bytes | None, bytes | None]
    ) -> QueueTime:
        """Return the queue's time. ``clock``: the reply to ``TIME``. ``stored``: the
        reply to ``HMGET clock seen ahead``. Pure."""
        clock_ms = clock[0] * 1000 + clock[1] // 1000
        seen_ms, ahead_ms = (to_int(one) for one in stored)
        now_ms = max(clock_ms + ahead_ms, seen_ms)
        return cls(now_ms, now_ms - clock_ms)


def queue_time(client: redis.Redis, keys: QueueKeys) -> QueueTime:
    """Return the queue's time in one round trip; writes nothing. Raises QueueError."""
    pipeline: Any = client.pipeline(transaction=False)
    with translated(client):
        clock, stored = pipeline.time().hmget(keys.clock, "seen", "ahead").execute()
    return QueueTime.of(clock, stored)


def parse_ahead_ms(reply: bytes | None) -> int:
    """Return the lead of the queue's time in ms from the reply to ``HGET clock ahead``.
    Pure."""
    return to_int(reply)
