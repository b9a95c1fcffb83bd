"""The event stream of a queue: the changes of jobs and uploads, in the order in which
they happened, for other programs to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.jobs.connection import BLOCK_S, translated
from dlpool.jobs.job_view import time_text_ms
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.redis_values import to_object, to_text

PAGE = 1000  # events per round trip
KEPT = 10_000  # entries, approximately; as in shared.lua
BEGIN = "0-0"  # before the first event


@dataclass(frozen=True)
class QueueEvent:
    """An event of a job or of an upload.

    ``id``: the position in the stream, ``MS-N``: milliseconds since 1970, and a number
    that distinguishes events of the same millisecond. ``job_id``: empty for an upload;
    the field ``upload_id`` then has the id.
    """

    id: str
    name: str
    job_id: str
    fields: Mapping[str, str]

    @property
    def at(self) -> str:
        """The time of the event by the clock of Redis, as RFC 3339 with
        milliseconds."""
        return time_text_ms(int(self.id.partition("-")[0]) / 1000)

    @property
    def note(self) -> Mapping[str, Any]:
        """The note of the event: ``label`` and ``message``, or the figures of a
        success; empty if the event has no note."""
        return to_object(self.fields.get("note"))

    @property
    def upload_id(self) -> str:
        """The id of the upload; empty for an event of a job."""
        return self.fields.get("upload_id", "")

    def as_json(self) -> dict[str, Any]:
        """Return the event with its fields as an object."""
        known: dict[str, Any] = {"id": self.id, "at": self.at, "event": self.name}
        known |= {} if self.upload_id else {"job_id": self.job_id}
        return known | {
            **self.fields,
            **({"note": dict(self.note)} if "note" in self.fields else {}),
        }


class EventWriter:
    """A writer of the event stream of one queue. The stream keeps about 10,000 entries,
    whether the writer or the transitions add them."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._key = keys.events

    def add(self, entries: Sequence[Mapping[str, str]]) -> None:
        """Add entries in the given order, in one round trip. Raises QueueError; the
        entries may have been added in spite of the error."""
        with translated(self._client):
            pipeline = self._client.pipeline(transaction=False)
            for fields in entries:
                pipeline.xadd(self._key, dict(fields), maxlen=KEPT, approximate=True)
            pipeline.execute()


class EventReader:
    """A reader of the event stream of one queue. Methods raise QueueError."""

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = client
        self._key = keys.events

    def last(self, count: int) -> list[QueueEvent]:
        """Return the newest ``count`` events, oldest first."""
        with translated(self._client):
            return _events(self._client.xrevrange(self._key, count=count))[::-1]

    def after(self, event_id: str) -> list[QueueEvent]:
        """Return up to 1000 events after ``event_id``."""
        with translated(self._client):
            return _events(
                self._client.xrange(self._key, min=f"({event_id}", count=PAGE)
            )

    def wait_after(self, event_id: str) -> list[QueueEvent]:
        """Return up to 1000 events after ``event_id``. If there are none, wait at most
        one second for the next event."""
        with translated(self._client):
            reply = self._client.xread(
                {self._key: event_id}, count=PAGE, block=round(BLOCK_S * 1000)
            )
        return _events(reply[0][1]) if reply else []


def _events(entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[QueueEvent]:
    return [_event(entry_id.decode(), fields) for entry_id, fields in entries]


def _event(entry_id: str, fields: Mapping[bytes, bytes]) -> QueueEvent:
    texts = {to_text(name): to_text(value) for name, value in fields.items()}
    return QueueEvent(entry_id, texts.pop("event", ""), texts.pop("id", ""), texts)
