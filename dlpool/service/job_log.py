"""What the log says of a job in a supervisor."""

from __future__ import annotations

import hashlib
from typing import Any

from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightJob

DISOWNED = ("FENCED", "GONE")


def log_disposition(
    log: Logger, held: InFlightJob, ending: FinishRequest, reply: str
) -> None:
    """The one summary line of a job's run."""
    fields = log_fields(held) | {
        name: value
        for name, value in ending.note.items()
        if name not in ("message", "path")
    }
    reason = ending.note.get("message")
    if reply in DISOWNED:
        log.warning("job_disowned", result=ending.disposition, reply=reply, **fields)
    elif ending.disposition == "success":
        log.info("job_succeeded", outcome="success", **fields)
    elif ending.disposition == "failed":
        if held.stack:
            fields["stack"] = held.stack
        log.error(
            "job_failed" if held.job is not None else "job_malformed",
            outcome="failure",
            error=reason,
            **fields,
        )
    elif ending.disposition in ("cancelled", "pause"):
        log.info(
            "job_cancelled" if ending.disposition == "cancelled" else "job_paused",
            reply=reply,
            **fields,
        )
    elif ending.disposition in ("retry", "crash"):
        fields["delay_s"] = ending.delay_s
        log.warning("job_retried", result=ending.disposition, reason=reason, **fields)
    elif ending.disposition == "yield":
        log.info(
            "job_yielded", reason=reason, reply=reply, delay_s=ending.delay_s, **fields
        )
    else:
        fields["delay_s"] = ending.delay_s
        log.info(
            "job_parked" if ending.disposition == "park" else "job_released",
            result=ending.disposition,
            reason=reason,
            reply=reply,
            **fields,
        )


def trace_id_of(job_id: str, job: PushedJob | None) -> str:
    """The trace id that the client gave, else one that follows from the id: the same in
    each run."""
    given = job.trace_id if job is not None else None
    return given or hashlib.sha256(job_id.encode()).hexdigest()[:32]


def log_fields(held: InFlightJob) -> dict[str, Any]:
    """Which job a line of the log is about."""
    job, claimed = held.job, held.claimed
    fields: dict[str, Any] = {
        "job_id": claimed.lease.job_id,
        "attempt": claimed.attempts,
        "trace_id": held.trace_id,
    }
    if job is not None:
        fields |= {"url": job.url, "path": job.save_path}
        if job.user_id is not None:
            fields["user_id"] = job.user_id
    return fields
