"""The failure records that clients see, also those that another service wrote: to list, to try again, to remove."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import redis

from dlpool.jobs.connection import translated
from dlpool.jobs.controls import Controls, records_client
from dlpool.jobs.jobview import json_object
from dlpool.jobs.keys import Keys

AT_ONCE = 500  # records in one reply of HSCAN, about
_HEAD = b'{"task_data":'


@dataclass(frozen=True)
class Failure:
    """A failure record. ``raw``: the job as it was pushed, None if the record does not hold one."""

    url: bytes
    value: bytes
    raw: bytes | None
    message: str
    failed_at: str
    job_id: str | None

    @classmethod
    def parse(cls, url: bytes, value: bytes) -> Failure:
        """Never raises: what is no record has neither job nor message."""
        fields = json_object(value.decode("utf-8", "replace"))
        task = fields.get("task_data")
        own = task.get("dlpool") if isinstance(task, dict) else None
        job_id = own.get("id") if isinstance(own, dict) else None
        return cls(
            url, value, _job_in(value, task), str(fields.get("error_message") or ""),
            str(fields.get("failed_at") or ""), job_id if isinstance(job_id, str) else None,
        )  # fmt: skip

    @property
    def id(self) -> str:
        """What names the record where its URL must not be shown: 32 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.url).hexdigest()[:32]

    def as_json(self) -> dict[str, Any]:
        job = None if self.raw is None else json_object(self.raw.decode("utf-8", "replace"))
        return {"url": self.url.decode("utf-8", "replace"), "message": self.message, "failed_at": self.failed_at,
                "job": job}  # fmt: skip


class Failures:
    """The records of one group. Thread-safe, as the client is. Each method raises QueueError."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client: Any = records_client(client, keys)
        self._keys = keys
        self._controls = Controls(client, keys)

    def all(self, limit: int | None = None) -> Iterator[Failure]:
        """At most ``limit`` records, in no order, a portion at a time. One that comes meanwhile may be missed."""
        with translated(self._client):
            found = self._client.hscan_iter(self._keys.failed, count=AT_ONCE)
            yield from (Failure.parse(url, value) for url, value in islice(found, limit))

    def get(self, url: str) -> Failure | None:
        """The record of a URL."""
        field = url.encode("utf-8", "surrogateescape")
        with translated(self._client):
            value = self._client.hget(self._keys.failed, field)
        return None if value is None else Failure.parse(field, value)

    def named(self, record_id: str) -> Failure | None:
        """The record of that id; all are looked through."""
        return next((one for one in self.all() if one.id == record_id), None)

    def retry(self, failure: Failure) -> str:
        """Let its job run again: OK, GONE (the record has changed), or EMPTY (there is no job in it).

        A job that is known by its id goes on under that; any other is pushed anew, as clients do.
        """
        if failure.raw is None:
            return "EMPTY"
        if failure.job_id and self._controls.control("retry", failure.job_id) == "OK":
            self.remove(failure)
            return "OK"
        return self._controls.requeue(failure.url, failure.value, failure.raw)

    def remove(self, failure: Failure) -> str:
        """Remove the record: OK, or GONE."""
        with translated(self._client):
            return "OK" if self._client.hdel(self._keys.failed, failure.url) else "GONE"


def _job_in(value: bytes, task: object) -> bytes | None:
    """The job, byte by byte as it was pushed where the record begins as ours do."""
    if not isinstance(task, dict):
        return None
    if value.startswith(_HEAD):
        text = value.decode("utf-8")
        _, end = json.JSONDecoder().raw_decode(text, len(_HEAD))
        return text[len(_HEAD) : end].encode()
    return json.dumps(task, ensure_ascii=False).encode("utf-8", "surrogatepass")
