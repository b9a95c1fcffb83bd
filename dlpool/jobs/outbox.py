"""In a Cluster: the way of a record from the end of its job, which is in one slot, to
where clients look, in another.

The end of a job puts its record into the outbox, in one step. Who ended the job then
writes it for clients, and takes it out. What a killed one leaves, or could not write,
any supervisor writes later. Written twice it says the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis

from dlpool import jsontext
from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.connection import translated
from dlpool.jobs.connection_routing import ClusterRoute
from dlpool.jobs.keys import SUCCESS_TTL_S, QueueKeys
from dlpool.jobs.queue_clock import queue_time
from dlpool.jobs.redis_values import to_int, to_text

AT_ONCE = 64
LATE_S = 10.0  # who ended the job has written its record by then, or does not any more


@dataclass(frozen=True)
class Delivery:
    """How many records clients see now, how many wait and why, and those (by ticket)
    that Redis will never take."""

    written: int = 0
    waiting: int = 0
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()


class Outbox:
    """Of one group. Thread-safe. Each method raises QueueError when the outbox itself
    is away."""

    def __init__(
        self, client: redis.Redis, keys: QueueKeys, cluster: ClusterRoute
    ) -> None:
        self._client: Any = client
        self._keys = keys
        self._key = keys.outbox
        self._cluster = cluster

    def deliver(self, tickets: Sequence[str]) -> Delivery:
        """Write the records of these tickets, as far as they are still there."""
        if not tickets:
            return Delivery()
        with translated(self._client):
            found = self._client.hmget(self._key, tickets)
        records = (
            (ticket, _record(entry or b""))
            for ticket, entry in zip(tickets, found, strict=True)
        )
        return self._write(
            [
                (ticket, record, SUCCESS_TTL_S)
                for ticket, record in records
                if record is not None
            ]
        )

    def replay(self) -> Delivery:
        """Write some of the records that lie there for long; one that has expired, or
        is overtaken, is dropped."""
        with translated(self._client):
            members = self._client.hrandfield(self._key, AT_ONCE, withvalues=True) or []
            now_s = (
                queue_time(self._client, self._keys).now_ms // 1000 if members else 0
            )
        late: list[tuple[str, ClientRecord, int]] = []
        foreign: list[bytes] = []
        for ticket, entry in zip(members[::2], members[1::2], strict=True):
            record, age_s = (
                _record(entry),
                now_s - to_int(entry.partition(b" ")[0]) // 1000,
            )
            if record is None:
                foreign.append(ticket)
            elif age_s >= LATE_S:
                late.append((to_text(ticket), record, SUCCESS_TTL_S - age_s))
        self.drop(foreign)
        return self._write(late, is_late=True)

    def drop(self, tickets: Sequence[str | bytes]) -> None:
        """Take out records that shall not be written."""
        if tickets:
            with translated(self._client):
                self._client.hdel(self._key, *tickets)

    def _write(
        self, entries: Sequence[tuple[str, ClientRecord, int]], *, is_late: bool = False
    ) -> Delivery:
        """Write (ticket, record, seconds to live); what a node does not take now stays,
        the others' are not kept."""
        written: list[str] = []
        refused: list[tuple[str, str]] = []
        away: dict[Any, str] = {}
        for ticket, record, ttl_s in entries:
            client = None
            try:
                client = self._client_of(record.key)
                if client in away:
                    continue
                _set(client, record, ttl_s, is_late=is_late)
                written.append(ticket)
            except (QueueAway, QueueRefused) as error:
                away[client] = str(error)
                self._cluster.invalidate()
                if client is None:
                    break
            except QueueError as error:
                refused.append((ticket, str(error)))
        self.drop([*written, *(ticket for ticket, _ in refused)])
        waiting = len(entries) - len(written) - len(refused)
        return Delivery(len(written), waiting, "; ".join(away.values()), tuple(refused))

    def _client_of(self, key: str) -> Any:
        with translated(self._client):
            return self._cluster.client_for(key)


def encode_entry(record: ClientRecord) -> bytes:
    """A record as the outbox holds it, after the time (ms) and a space; its text stays
    byte by byte."""
    return jsontext.dumps([record.key, record.field]) + b"\n" + record.value


def _record(entry: bytes) -> ClientRecord | None:
    """The record of an entry; None for what is no entry of ours."""
    head, _, value = entry.partition(b" ")[2].partition(b"\n")
    try:
        key, field = jsontext.loads(head)
    except (ValueError, TypeError, RecursionError):
        return None
    is_one = isinstance(key, str) and isinstance(field, str | bytes | None)
    return ClientRecord(key, value, field) if is_one else None


def _set(client: Any, record: ClientRecord, ttl_s: int, *, is_late: bool) -> None:
    with translated(client):
        if is_late and _is_overtaken(client, record):
            return
        if record.field is not None:
            client.hset(record.key, record.field, record.value)
        elif ttl_s > 0:
            client.set(record.key, record.value, ex=ttl_s)


def _is_overtaken(client: Any, record: ClientRecord) -> bool:
    """Whether clients see a record there that is as new already."""
    seen = (
        client.get(record.key)
        if record.field is None
        else client.hget(record.key, record.field)
    )
    return seen is not None and _time(seen) >= _time(record.value)


def _time(value: bytes) -> str:
    """When a record says that its job ended; '' if it says nothing."""
    try:
        said = json.loads(value)
        return str(said.get("finished_at") or said.get("failed_at") or "")
    except (ValueError, AttributeError):
        return ""
