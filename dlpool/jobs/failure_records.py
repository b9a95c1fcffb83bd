"""Listing, retry and removal of the failure records that clients see, including records
that other services have written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from heapq import nsmallest
from itertools import islice
from operator import itemgetter
from typing import Any

import redis

from dlpool.dataclass import dataclass
from dlpool.errors import UsageError
from dlpool.jobs.connection import translated
from dlpool.jobs.job_admin import JobAdmin, records_client
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import parse_time
from dlpool.jobs.redis_values import to_object
from dlpool.redaction import REDACTED

BATCH = 500  # records of one reply to HSCAN, approximately
MAX_SORTED = 100_000  # records that a page is selected from
_HEAD = b'{"task_data":'
# The field is usually at the end. Searching it is much faster than decoding the record.
_FAILED_AT = re.compile(rb'"failed_at": ?"([^"\\]{1,40})"')


@dataclass(frozen=True)
class FailureRecord:
    """A failure record. ``raw``: the job as pushed; None if the record contains no
    job."""

    url: bytes
    value: bytes
    raw: bytes | None
    message: str
    failed_at: str
    job_id: str | None

    @classmethod
    def parse(cls, url: bytes, value: bytes) -> FailureRecord:
        """Parse a record. Fields that are missing or invalid become empty or None. Does
        not raise."""
        fields = to_object(value.decode("utf-8", "replace"))
        task = fields.get("task_data")
        own = task.get("dlpool") if isinstance(task, dict) else None
        job_id = own.get("id") if isinstance(own, dict) else None
        return cls(
            url,
            value,
            _job_in(value, task),
            str(fields.get("error_message") or ""),
            str(fields.get("failed_at") or ""),
            job_id if isinstance(job_id, str) else None,
        )

    @property
    def id(self) -> str:
        """The id of the record, shown where the URL must be secret: 32 hexadecimal
        digits of the URL's SHA-256."""
        return record_id(self.url)

    def as_json(self) -> dict[str, Any]:
        """Return the record as an object. Values of the job's headers are redacted."""
        job = (
            None if self.raw is None else to_object(self.raw.decode("utf-8", "replace"))
        )
        own = job.get("dlpool") if job is not None else None
        if (
            job is not None
            and isinstance(own, dict)
            and isinstance(own.get("headers"), dict)
        ):
            job = {
                **job,
                "dlpool": {**own, "headers": dict.fromkeys(own["headers"], REDACTED)},
            }
        return {
            "url": self.url.decode("utf-8", "replace"),
            "message": self.message,
            "failed_at": self.failed_at,
            "job": job,
        }


class FailureRecords:
    """The failure records of one queue.

    Thread-safe, because ``redis.Redis`` is. Methods raise QueueError.
    """

    def __init__(self, client: redis.Redis, keys: QueueKeys) -> None:
        self._client: Any = records_client(client, keys)
        self._keys = keys
        self._jobs = JobAdmin(client, keys)

    def all(self) -> Iterator[FailureRecord]:
        """Yield the records in no order. A record may be yielded twice. A record that
        is added during the call may be missed."""
        yield from (FailureRecord.parse(url, value) for url, value in self._scanned())

    def page(
        self, limit: int, after: str | None = None
    ) -> tuple[list[FailureRecord], str | None]:
        """Return the newest ``limit`` records after a cursor, and the next cursor.

        The next cursor is None if no records follow. The hash is unordered, so each
        call reads all records, but at most 100,000. Raises UsageError for an invalid
        cursor.
        """
        last = None if after is None else _cursor(after)
        once = _each_once(islice(self._scanned(), MAX_SORTED))
        keyed = ((_order(url, value), url, value) for url, value in once)
        found = nsmallest(
            limit + 1,
            (one for one in keyed if last is None or one[0] > last),
            key=itemgetter(0),
        )
        rows = [FailureRecord.parse(url, value) for _, url, value in found[:limit]]
        if len(found) <= limit:
            return rows, None
        (age, name), _, _ = found[limit - 1]
        return rows, f"{-age}-{name}"

    def get(self, url: str) -> FailureRecord | None:
        """Return the record of a URL, None if there is none."""
        field = url.encode("utf-8", "surrogateescape")
        with translated(self._client):
            value = self._client.hget(self._keys.failed, field)
        return None if value is None else FailureRecord.parse(field, value)

    def by_id(self, record_id: str) -> FailureRecord | None:
        """Return the record with the id ``record_id``; None if there is none. Reads
        records until it finds the id."""
        return next((one for one in self.all() if one.id == record_id), None)

    def _scanned(self) -> Iterator[tuple[bytes, bytes]]:
        with translated(self._client):
            yield from self._client.hscan_iter(self._keys.failed, count=BATCH)

    def retry(self, failure: FailureRecord) -> str:
        """Run the job of a record again. Return OK, GONE (the record has changed or was
        deleted), or EMPTY (the record contains no job).

        If Redis can retry the job itself, the job keeps its id. Otherwise the job is
        pushed again, as clients push jobs.
        """
        if failure.raw is None:
            return "EMPTY"
        if failure.job_id and self._jobs.execute("retry", failure.job_id) == "OK":
            self.remove(failure)
            return "OK"
        return self._jobs.requeue(failure.url, failure.value, failure.raw)

    def remove(self, failure: FailureRecord) -> str:
        """Delete the record. Return OK, or GONE if it does not exist."""
        with translated(self._client):
            return "OK" if self._client.hdel(self._keys.failed, failure.url) else "GONE"


def _each_once(records: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield each record once. HSCAN may return a record more than once."""
    seen = set()
    for url, value in records:
        name = record_id(url)
        if name not in seen:
            seen.add(name)
            yield url, value


def record_id(url: bytes) -> str:
    """Return the id of the failure record of a URL, whether the record exists or
    not."""
    return hashlib.sha256(url).hexdigest()[:32]


def _order(url: bytes, value: bytes) -> tuple[int, str]:
    """Return a sort key that puts the newest record first: the negated time of the
    failure in ms, and the record's id."""
    found = _FAILED_AT.findall(value, max(0, len(value) - 100)) or _FAILED_AT.findall(
        value
    )
    at = 0.0
    with suppress(UsageError):
        at = parse_time(found[-1].decode("utf-8", "replace")) if found else 0.0
    return -int(max(0.0, at) * 1000), record_id(url)


def _cursor(text: str) -> tuple[int, str]:
    match = re.fullmatch("([0-9]{1,17})-([0-9a-f]{32})", text)
    if match is None:
        raise UsageError("the cursor does not belong to this list")
    return -int(match[1]), match[2]


def _job_in(value: bytes, task: object) -> bytes | None:
    """Return the JSON of the job in a record; None if the record has no job.

    ``task``: the parsed job. If dlpool wrote the record, the result is the job byte by
    byte as pushed. Otherwise ``task`` is encoded as JSON again.
    """
    if not isinstance(task, dict):
        return None
    if value.startswith(_HEAD):
        with suppress(ValueError):  # a record of another service may differ further on
            text = value.decode("utf-8")
            _, end = json.JSONDecoder().raw_decode(text, len(_HEAD))
            return text[len(_HEAD) : end].encode()
    return json.dumps(task, ensure_ascii=False).encode("utf-8", "surrogatepass")
