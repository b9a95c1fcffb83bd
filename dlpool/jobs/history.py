"""The history of a queue: a sample of its figures every ten seconds. Samples are kept
for a day."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis

from dlpool.jobs.connection import translated
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.queue_clock import parse_ahead_ms
from dlpool.jobs.queue_views import QueueViews
from dlpool.jobs.redis_values import to_number, to_text
from dlpool.jobs.transitions import Transitions

SAMPLE_S = 10
KEPT = 8640  # samples: one day
MOST = 720  # samples of one reply
TTL_MS = 2 * 86_400_000  # expiry of the history after its last sample
FIELDS = ("waiting", "running", "rate", "failed")

Sample = list[int]  # ms since 1970, waiting jobs, running jobs, bytes per second


class QueueHistory:
    """The history of one queue. Methods raise QueueError."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._keys = keys
        self._views = QueueViews(client, keys)
        self._transitions = Transitions(client, keys)

    def record_sample(self) -> bool:
        """Record the present figures. Return False if a sample was recorded within the
        last ten seconds."""
        if not self._transitions.take_turn(self._keys.sample_turn, SAMPLE_S):
            return False
        stats = self._views.stats(with_failure_records=False)
        failed = stats.days[0].counters.get("failed", 0)
        values = (stats.waiting, stats.running, stats.rate, failed)
        self._transitions.add_sample(
            dict(zip(FIELDS, values, strict=True)), kept=KEPT, ttl_ms=TTL_MS
        )
        return True

    def since(self, ms: int = 0, most: int = MOST) -> list[Sample]:
        """Return samples since ``ms`` (ms since 1970), oldest first. If there are more
        than ``most`` samples, return only ``most`` samples, evenly spaced."""
        with translated(self._client):
            ahead_ms = parse_ahead_ms(self._client.hget(self._keys.clock, "ahead"))
            entries = self._client.xrange(self._keys.history, min=ms + ahead_ms)
        return [
            _sample(entry_id, fields, ahead_ms)
            for entry_id, fields in thin(entries, most)
        ]


def thin(entries: list[Any], most: int) -> list[Any]:
    """Return at most ``most`` entries, evenly spaced, including the first and the last.
    ``most``: at least 2. Pure."""
    count = len(entries)
    if count <= most:
        return entries
    return [entries[place * (count - 1) // (most - 1)] for place in range(most)]


def _sample(entry_id: bytes, fields: Mapping[bytes, bytes], ahead_ms: int) -> Sample:
    values = (to_number(to_text(fields.get(name.encode()))) for name in FIELDS[:3])
    return [
        int(entry_id.partition(b"-")[0]) - ahead_ms,
        *(int(value or 0) for value in values),
    ]
