"""One job as it stands in Redis, for people and programs. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlpool.jobs.client_records import rfc3339
from dlpool.jobs.keys import node_of
from dlpool.jobs.pushed_job import BadJob, Malformed, PushedJob

_LAST_SECOND = 253_402_300_799  # of the year 9999: RFC 3339 has no later ones


@dataclass(frozen=True)
class JobView:
    """One job as it stands in Redis. Times in seconds since 1970.

    ``id``: None while it lies in the intake. ``asked``: what the client pushed, None if
    it cannot be run; then ``problem`` says why. ``leader``: the job that does the same,
    and with which this one ends.
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
    asked: PushedJob | None = field(default=None, repr=False)

    @classmethod
    def from_raw(cls, raw: bytes) -> JobView:
        """A job of the intake, or of an inbox."""
        return cls(None, "queued", **_asked(raw))

    @classmethod
    def from_hash(
        cls, job_id: str, fields: Mapping[bytes, bytes], ahead_ms: int = 0
    ) -> JobView:
        """Return the view of a job from its hash; missing or invalid fields have their
        defaults.

        ``ahead_ms``: how far the queue's time, in which the hash tells its times, is
        ahead of the clock.
        """
        texts = {
            name.decode("ascii", "replace"): value.decode("utf-8", "replace")
            for name, value in fields.items()
        }
        known: dict[str, Any] = _asked(fields.get(b"raw", b""))
        known["priority"] = texts.get("priority") or known["priority"]
        for name in ("fence", "attempts", "crashes", "takeovers"):
            known[name] = int(number(texts.get(name)) or 0)
        for name in ("created", "started", "ended", "due"):
            known[f"{name}_at"] = _seconds(texts.get(name), ahead_ms)
        for name in ("progress", "note"):
            known[name] = json_object(texts.get(name))
        for name in ("owner", "flag", "leader"):
            known[name] = texts.get(name)
        return cls(
            job_id,
            texts.get("state", "unknown"),
            is_lease_expired="suspect" in texts,
            **known,
        )

    @property
    def size(self) -> int | None:
        """Of the file, in bytes; None while it is not known."""
        sizes = (self.note.get("size"), self.progress.get("size"))
        return next((size for size in sizes if isinstance(size, int)), None)

    def as_json(self) -> dict[str, Any]:
        """For programs: the URL as it was pushed, times as RFC 3339, of the headers
        only their names."""
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
            "is_suspect": self.is_lease_expired,
            "size": self.size,
            "created_at": time_text(self.created_at),
            "started_at": time_text(self.started_at),
            "ended_at": time_text(self.ended_at),
            "due_at": time_text(self.due_at),
            **_wishes(self.asked),
        }


def time_text(at: float | None) -> str | None:
    """A moment (seconds since 1970) as RFC 3339."""
    return None if at is None else rfc3339(min(max(at, 0), _LAST_SECOND))


def time_text_ms(at: float) -> str:
    """The same, with milliseconds."""
    ms = round(at * 1000)
    return f"{str(time_text(ms // 1000))[:-1]}.{ms % 1000:03d}Z"


def _asked(raw: bytes) -> dict[str, Any]:
    """What the pushed text says, as fields of a JobView."""
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
        "asked": job,
    }


def _wishes(job: PushedJob | None) -> dict[str, Any]:
    """What the client asked for beyond URL and path; of the headers only their
    names."""
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


def number(text: str | None) -> float | None:
    """A number from Redis, None if it is none."""
    return (
        float(text)
        if text and re.fullmatch(r"-?[0-9]{1,18}(\.[0-9]+)?", text)
        else None
    )


def _seconds(text: str | None, ahead_ms: int) -> float | None:
    ms = number(text)
    return None if ms is None else (ms - ahead_ms) / 1000


def json_object(text: str | None) -> dict[str, Any]:
    """A JSON object from Redis, empty if it is none."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
