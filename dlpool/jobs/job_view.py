"""One job as it is stored in Redis, for people and programs. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.jobs.client_records import rfc3339
from dlpool.jobs.keys import node_of
from dlpool.jobs.pushed_job import BadJob, Malformed, PushedJob
from dlpool.jobs.redis_values import to_number, to_object
from dlpool.jobs.states import JobState

_LAST_SECOND = 253_402_300_799  # of the year 9999, the last of RFC 3339


@dataclass(frozen=True)
class JobView:
    """One job as Redis stores it, with times in seconds since 1970.

    ``state``: a value of ``JobState``, or "unknown". ``id``: None while the job is in
    the intake list or an inbox. ``pushed``: the parsed job, None if its text is
    invalid; ``problem`` then says why. ``leader``: id of an equal job; this job waits
    for that job and ends with it. ``flag``: "cancel" or "pause" if an operator has
    requested it and the job's supervisor has not yet done it.
    """

    id: str | None
    state: str
    url: str | None = None
    save_path: str | None = None
    priority: str = "normal"
    owner: str | None = None
    fence: int = 0
    attempts: int = 0
    crashes: int = 0
    takeovers: int = 0
    created_at: float | None = None
    started_at: float | None = None
    ended_at: float | None = None
    due_at: float | None = None
    progress: Mapping[str, Any] = field(default_factory=dict)
    note: Mapping[str, Any] = field(default_factory=dict)
    flag: str | None = None
    leader: str | None = None
    is_lease_expired: bool = False
    problem: str | None = None
    pushed: PushedJob | None = field(default=None, repr=False)

    @classmethod
    def from_raw(cls, raw: bytes) -> JobView:
        """Return the view of a job in the intake list or an inbox."""
        return cls(None, JobState.QUEUED, **_fields_of(raw))

    @classmethod
    def from_hash(
        cls, job_id: str, fields: Mapping[bytes, bytes], ahead_ms: int = 0
    ) -> JobView:
        """Return the view of a job from its hash. Missing or invalid fields get their
        defaults.

        ``ahead_ms``: lead of the queue's time over the clock of Redis; the times in the
        hash are queue times.
        """
        texts = {
            name.decode("ascii", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        known: dict[str, Any] = _fields_of(fields.get(b"raw", b""))
        known["priority"] = texts.get("priority") or known["priority"]
        for name in ("fence", "attempts", "crashes", "takeovers"):
            known[name] = int(to_number(texts.get(name)) or 0)
        for name in ("created", "started", "ended", "due"):
            known[f"{name}_at"] = _seconds(texts.get(name), ahead_ms)
        for name in ("progress", "note"):
            known[name] = to_object(texts.get(name))
        for name in ("owner", "flag", "leader"):
            known[name] = texts.get(name)
        return cls(
            job_id,
            texts.get("state", "unknown"),
            is_lease_expired="lease_expired" in texts,
            **known,
        )

    @property
    def size(self) -> int | None:
        """Size of the file in bytes; None while it is unknown."""
        sizes = (self.note.get("size"), self.progress.get("size"))
        return next((size for size in sizes if isinstance(size, int)), None)

    def as_json(self) -> dict[str, Any]:
        """Return the job as an object for programs. The URL is as pushed, times are in
        RFC 3339, and of headers only the names are included."""
        return {
            "id": self.id,
            "state": self.state,
            "url": self.url,
            "save_path": self.save_path,
            "priority": self.priority,
            "owner": self.owner,
            "node": node_of(self.owner or ""),
            "fence": self.fence,
            "attempts": self.attempts,
            "crashes": self.crashes,
            "takeovers": self.takeovers,
            "progress": dict(self.progress) or None,
            "note": dict(self.note) or None,
            "problem": self.problem,
            "flag": self.flag,
            "leader": self.leader,
            "is_lease_expired": self.is_lease_expired,
            "size": self.size,
            "created_at": time_text(self.created_at),
            "started_at": time_text(self.started_at),
            "ended_at": time_text(self.ended_at),
            "due_at": time_text(self.due_at),
            **_options(self.pushed),
        }


def time_text(at: float | None) -> str | None:
    """Return a time (seconds since 1970) as RFC 3339; None for None."""
    return None if at is None else rfc3339(min(max(at, 0), _LAST_SECOND))


def time_text_ms(at: float) -> str:
    """Return a time (seconds since 1970) as RFC 3339 with milliseconds."""
    ms = round(at * 1000)
    return f"{str(time_text(ms // 1000))[:-1]}.{ms % 1000:03d}Z"


def _fields_of(raw: bytes) -> dict[str, Any]:
    """Parse the text of a job, and return the values that it gives to fields of
    ``JobView``."""
    try:
        job = PushedJob.parse(raw)
    except BadJob as error:
        return {"url": error.url, "problem": str(error), "priority": "normal"}
    except Malformed as error:
        return {"problem": str(error), "priority": "normal"}
    return {
        "url": job.url,
        "save_path": job.save_path,
        "priority": job.priority,
        "pushed": job,
    }


def _options(job: PushedJob | None) -> dict[str, Any]:
    """Return the options that the client gave to a job; of headers, only the names. For
    None, return the defaults."""
    job = job or PushedJob(b"", "", "")
    return {
        "not_before": time_text(job.not_before),
        "max_attempts": job.max_attempts,
        "checksum": str(job.checksum) if job.checksum else None,
        "headers": list(job.headers),
        "if_exists": job.if_exists,
        "dedupe": job.dedupe,
        "user_id": job.user_id,
        "trace_id": job.trace_id,
        "limit_rate": job.limit_rate,
        "scan": job.scan,
    }


def _seconds(text: str | None, ahead_ms: int) -> float | None:
    ms = to_number(text)
    return None if ms is None else (ms - ahead_ms) / 1000
