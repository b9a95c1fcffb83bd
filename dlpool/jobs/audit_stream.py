"""The audit stream of a queue. Programs that make changes write it; ``dlpool audit``
reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.jobs.audit_events import KINDS
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.job_view import time_text_ms
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.redis_values import to_int, to_text

PAGE = 500  # events per round trip
MOST_READ = 1_000_000  # events that one listing reads at most


@dataclass(frozen=True)
class AuditEvent:
    """An event of the stream.

    ``id``: the position in the stream, ``MS-NUMBER``: milliseconds since 1970, and a
    number that distinguishes events of the same millisecond.
    """

    id: str
    fields: Mapping[str, str]

    @property
    def at(self) -> str:
        """The time of the event by the clock of Redis, as RFC 3339 with
        milliseconds."""
        return time_text_ms(int(self.id.partition("-")[0]) / 1000)

    def as_json(self) -> dict[str, Any]:
        """Return the event as an object: ``id``, ``at``, and its fields, with ``count``
        as a number."""
        shown: dict[str, Any] = {"id": self.id, "at": self.at, **self.fields}
        count = to_int(self.fields.get("count", ""))
        return shown | ({"count": count} if count > 0 else {})


@dataclass(frozen=True)
class AuditFilter:
    """A selection of events by their fields; a field that is None accepts any value.

    ``action`` may be a kind: ``job`` stands for all actions on jobs. ``since``: seconds
    since 1970.
    """

    actor: str | None = None
    action: str | None = None
    object: str | None = None
    since: float | None = None

    def matches(self, event: AuditEvent) -> bool:
        """Return whether the event has the wanted fields. Ignores ``since``, which the
        reader checks."""
        action = event.fields.get("action", "")
        named = action.partition(".")[0] if self.action in KINDS else action
        pairs = (
            (self.actor, event.fields.get("actor", "")),
            (self.action, named),
            (self.object, event.fields.get("object", "")),
        )
        return all(wanted is None or wanted == found for wanted, found in pairs)


class AuditWriter:
    """A writer of the stream, which keeps about ``kept`` events. Thread-safe."""

    def __init__(self, client: redis.Redis, keys: QueueKeys, kept: int) -> None:
        self._client: Any = client
        self._key = keys.audit
        self._kept = kept

    def add(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Add entries in the given order, in one round trip. Raises QueueError; the
        entries may have been added in spite of the error."""
        with translated(self._client):
            pipeline = self._client.pipeline(transaction=False)
            for fields in entries:
                pipeline.xadd(
                    self._key, dict(fields), maxlen=self._kept, approximate=True
                )
            pipeline.execute()


class AuditReader:
    """A reader of the stream of one queue. Methods raise QueueError."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._key = keys.audit

    def last(self, count: int, wanted: AuditFilter) -> list[AuditEvent]:
        """Return the newest ``count`` events that ``wanted`` selects, oldest first.
        Searches only the newest million events."""
        found: list[AuditEvent] = []
        for event in self._newest_first(
            "-" if wanted.since is None else str(max(0, round(wanted.since * 1000)))
        ):
            if wanted.matches(event):
                found.append(event)
                if len(found) == count:
                    break
        return found[::-1]

    def newest_id(self) -> str:
        """Return the id of the newest event; ``0-0`` if there is none."""
        with translated(self._client):
            found = self._client.xrevrange(self._key, count=1)
        return found[0][0].decode() if found else "0-0"

    def wait_after(self, event_id: str) -> list[AuditEvent]:
        """Return up to 500 events after ``event_id``. If there are none, wait at most
        one second for the next event."""
        with translated(self._client):
            reply = self._client.xread(
                {self._key: event_id}, count=PAGE, block=round(BLOCK_S * 1000)
            )
        return [_event(*entry) for entry in reply[0][1]] if reply else []

    def _newest_first(self, begin: str) -> Iterator[AuditEvent]:
        end = "+"
        for _ in range(MOST_READ // PAGE):
            with translated(self._client):
                page = self._client.xrevrange(self._key, max=end, min=begin, count=PAGE)
            yield from (_event(*entry) for entry in page)
            if len(page) < PAGE:
                return
            end = f"({page[-1][0].decode()}"


def _event(entry_id: bytes, fields: Mapping[bytes, bytes]) -> AuditEvent:
    texts = {to_text(name): to_text(value) for name, value in fields.items()}
    return AuditEvent(entry_id.decode(), texts)
