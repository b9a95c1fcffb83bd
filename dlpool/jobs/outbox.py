"""The outbox of a Cluster: records of ended jobs on their way to the slot where clients
read them.

The step that ends a job, ``finish``, puts the job's record into the outbox, which is in
the queue's slot. The caller of ``finish`` then writes the record for clients and
removes it from the outbox. If the caller is killed first, a supervisor does both later.
Writing a record twice does no harm.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import redis

from dlpool import jsontext
from dlpool.dataclass import dataclass
from dlpool.errors import QueueAway, QueueError, QueueRefused
from dlpool.jobs.client_records import ClientRecord
from dlpool.jobs.connection import translated
from dlpool.jobs.connection_routing import ClusterRoute
from dlpool.jobs.keys import SUCCESS_TTL_S, QueueKeys
from dlpool.jobs.queue_clock import queue_time
from dlpool.jobs.redis_values import to_int, to_text

BATCH = 64  # records of one replay
LATE_S = 10.0  # age at which a record is replayed: its caller has failed to deliver it


@dataclass(frozen=True)
class Delivery:
    """The result of writing records. ``written``: number of records that were written
    or are no longer needed. ``waiting``: number of records that stay in the outbox;
    ``reason``: why they stay.

    ``refused``: records that Redis will never accept, as (lease, error); they are
    removed.
    """

    written: int = 0
    waiting: int = 0
    reason: str = ""
    refused: tuple[tuple[str, str], ...] = ()


class Outbox:
    """The outbox of one queue. Thread-safe. Methods raise QueueError if the outbox
    itself cannot be reached."""

    def __init__(
        self, client: redis.Redis, keys: QueueKeys, cluster: ClusterRoute
    ) -> None:
        self._client: Any = client
        self._keys = keys
        self._key = keys.outbox
        self._cluster = cluster

    def deliver(self, leases: Sequence[str]) -> Delivery:
        """Write the records of ``leases`` to the keys that clients read. Skip a lease
        whose record has left the outbox."""
        if not leases:
            return Delivery()
        with translated(self._client):
            found = self._client.hmget(self._key, leases)
        records = (
            (lease, _record(entry or b""))
            for lease, entry in zip(leases, found, strict=True)
        )
        return self._write(
            [
                (lease, record, SUCCESS_TTL_S)
                for lease, record in records
                if record is not None
            ]
        )

    def replay(self) -> Delivery:
        """Read up to 64 records. Write those that are at least ten seconds old to the
        keys that clients read.

        Drops a record that is invalid, has expired, or is not newer than the record
        that clients already see.
        """
        with translated(self._client):
            members = self._client.hrandfield(self._key, BATCH, withvalues=True) or []
            now_s = (
                queue_time(self._client, self._keys).now_ms // 1000 if members else 0
            )
        late: list[tuple[str, ClientRecord, int]] = []
        foreign: list[bytes] = []
        for lease, entry in zip(members[::2], members[1::2], strict=True):
            record, age_s = (
                _record(entry),
                now_s - to_int(entry.partition(b" ")[0]) // 1000,
            )
            if record is None:
                foreign.append(lease)
            elif age_s >= LATE_S:
                late.append((to_text(lease), record, SUCCESS_TTL_S - age_s))
        self.drop(foreign)
        return self._write(late, is_late=True)

    def drop(self, leases: Sequence[str | bytes]) -> None:
        """Remove records without writing them."""
        if leases:
            with translated(self._client):
                self._client.hdel(self._key, *leases)

    def _write(
        self, entries: Sequence[tuple[str, ClientRecord, int]], *, is_late: bool = False
    ) -> Delivery:
        """Write ``entries``: (lease, record, seconds until the record expires). Records
        of a Cluster node that is away stay in the outbox."""
        written: list[str] = []
        refused: list[tuple[str, str]] = []
        away: dict[Any, str] = {}
        for lease, record, ttl_s in entries:
            client = None
            try:
                client = self._client_for(record.key)
                if client in away:
                    continue
                _set(client, record, ttl_s, is_late=is_late)
                written.append(lease)
            except (QueueAway, QueueRefused) as error:
                away[client] = str(error)
                self._cluster.invalidate()
                if client is None:
                    break
            except QueueError as error:
                refused.append((lease, str(error)))
        self.drop([*written, *(lease for lease, _ in refused)])
        waiting = len(entries) - len(written) - len(refused)
        return Delivery(len(written), waiting, "; ".join(away.values()), tuple(refused))

    def _client_for(self, key: str) -> Any:
        with translated(self._client):
            return self._cluster.client_for(key)


def encode_entry(record: ClientRecord) -> bytes:
    """Return a record as bytes for the scripts, which store the time (ms) and a space
    before these bytes in the outbox. The record's text stays unchanged."""
    return jsontext.dumps([record.key, record.field]) + b"\n" + record.value


def _record(entry: bytes) -> ClientRecord | None:
    """Return the record of an entry; None for an invalid one."""
    head, _, value = entry.partition(b" ")[2].partition(b"\n")
    try:
        key, field = jsontext.loads(head)
    except (ValueError, TypeError, RecursionError):
        return None
    is_valid = isinstance(key, str) and isinstance(field, str | bytes | None)
    return ClientRecord(key, value, field) if is_valid else None


def _set(client: Any, record: ClientRecord, ttl_s: int, *, is_late: bool) -> None:
    with translated(client):
        if is_late and _is_overtaken(client, record):
            return
        if record.field is not None:
            client.hset(record.key, record.field, record.value)
        elif ttl_s > 0:
            client.set(record.key, record.value, ex=ttl_s)


def _is_overtaken(client: Any, record: ClientRecord) -> bool:
    """Return whether clients already see a record that is at least as new."""
    seen = (
        client.get(record.key)
        if record.field is None
        else client.hget(record.key, record.field)
    )
    return seen is not None and _ended_at(seen) >= _ended_at(record.value)


def _ended_at(value: bytes) -> str:
    """Return the time in a record at which its job ended; '' if it has none."""
    try:
        fields = json.loads(value)
        return str(fields.get("finished_at") or fields.get("failed_at") or "")
    except (ValueError, AttributeError):
        return ""
