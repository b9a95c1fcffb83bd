"""The success and failure records that clients read, in the exact form of the Go
downloader 3.1."""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from functools import lru_cache

from dlpool.dataclass import dataclass
from dlpool.jobs.keys import QueueKeys
from dlpool.jobs.pushed_job import PushedJob

# message in the failure record of a cancelled job, and in its note; as in admin.lua
CANCELLED = "the job was cancelled"
_to_json = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class ClientRecord:
    """A record for clients. ``value``: its JSON text.

    ``field``: the field of the hash ``key``; None if ``key`` is a string that expires.
    """

    key: str
    value: bytes
    field: str | None = None


def success_record(
    keys: QueueKeys, job: PushedJob, size: int, seconds: float, at: float
) -> ClientRecord:
    """Return a success record.

    ``size``: bytes of the file. ``seconds``: duration of the work. ``at``: end of the
    job, in seconds since 1970.
    """
    value = {
        "url": job.url,
        "save_path": job.save_path,
        "file_size": size,
        "duration": float(seconds),
        "finished_at": rfc3339(at),
    }
    return ClientRecord(keys.success(job.url), _to_json(value).encode())


def failure_record(
    keys: QueueKeys, url: str, raw: bytes, message: str, at: float
) -> ClientRecord:
    """Return a failure record of a job. ``raw``: the job as pushed, which the record
    contains unchanged."""
    text = json.dumps(message).encode()
    value = b'{"task_data":%b,"error_message":%b,"failed_at":"%b"}' % (
        raw,
        text,
        rfc3339(at).encode(),
    )
    return ClientRecord(keys.failed, value, url)


def rfc3339(at: float | None = None) -> str:
    """Return a time as RFC 3339 in UTC, truncated to the second.

    ``at``: seconds since 1970; None means the present.
    """
    return _rfc3339(int(time.time() if at is None else at))


@lru_cache(maxsize=16)
def _rfc3339(second: int) -> str:
    return (
        datetime.fromtimestamp(second, timezone.utc).isoformat().replace("+00:00", "Z")
    )
