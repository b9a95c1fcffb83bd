"""Log lines of a supervisor about jobs."""

from __future__ import annotations

import hashlib
from typing import Any

from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.states import Disposition
from dlpool.jobs.transitions import FinishRequest
from dlpool.observe.log import Logger
from dlpool.service.inflight import InFlightJob

# replies of finish.lua to a supervisor that no longer holds the lease
LEASE_LOST_REPLIES = ("FENCED", "GONE")


def log_disposition(
    log: Logger, held: InFlightJob, request: FinishRequest, reply: str
) -> None:
    """Write the summary line of an attempt.

    ``reply`` is the answer of Redis to ``request``.
    """
    disposition, reason = request.disposition, request.note.get("message")
    fields = log_fields(held) | {
        name: value
        for name, value in request.note.items()
        if name not in ("message", "path")
    }
    if reply in LEASE_LOST_REPLIES:
        log.warning("job_fenced", disposition=disposition, reply=reply, **fields)
    elif disposition is Disposition.SUCCEED:
        log.info("job_succeeded", outcome="success", **fields)
    elif disposition is Disposition.FAIL:
        if held.stack:
            fields["stack"] = held.stack
        log.error(
            "job_failed" if held.job is not None else "job_malformed",
            outcome="failure",
            error=reason,
            **fields,
        )
    elif disposition is Disposition.CANCEL:
        log.info("job_cancelled", reply=reply, **fields)
    elif disposition is Disposition.PAUSE:
        log.info("job_paused", reply=reply, **fields)
    else:
        _log_requeued(log, request, reply, fields)


def _log_requeued(
    log: Logger, request: FinishRequest, reply: str, fields: dict[str, Any]
) -> None:
    disposition = request.disposition
    fields |= {
        "disposition": disposition,
        "reason": request.note.get("message"),
        "delay_s": request.delay_s,
    }
    if disposition in (Disposition.RETRY, Disposition.CRASH):
        log.warning("job_retried", **fields)
    elif disposition is Disposition.YIELD:
        log.info("job_yielded", reply=reply, **fields)
    elif disposition is Disposition.THROTTLE:
        log.info("job_throttled", reply=reply, **fields)
    else:
        log.info("job_released", reply=reply, **fields)


def trace_id_of(job_id: str, job: PushedJob | None) -> str:
    """Return the trace id that the client gave a job, or one derived from the job id.

    All attempts of a job have the same trace id.
    """
    chosen = job.trace_id if job is not None else None
    return chosen or hashlib.sha256(job_id.encode()).hexdigest()[:32]


def log_fields(held: InFlightJob) -> dict[str, Any]:
    """Return the fields that identify a job in log lines."""
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
