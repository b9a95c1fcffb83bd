"""The search for stale files, whose jobs ended on another node or while this node was
down."""

from __future__ import annotations

from dlpool.jobs.connection import translated
from dlpool.service.journal import CleanupJournal
from dlpool.service.queue.messages import StaleFilesFound
from dlpool.service.queue.redis_state import QueueContext

BATCH = 500  # entries of the journal that one sweep checks
# states of jobs that have not ended
OPEN = (b"queued", b"delayed", b"running", b"paused")


class StaleFileSweeper:
    """Compares the journal with the jobs in Redis. Used by the heartbeat thread."""

    def __init__(self, context: QueueContext, journal: CleanupJournal) -> None:
        self._transitions = context.transitions
        self._journal = journal
        self._in_flight = context.in_flight
        self._post = context.post
        self._last = ""

    def sweep(self) -> None:
        """Check the next part of the journal, and post StaleFilesFound with the jobs
        that have ended. Raises QueueError."""
        jobs = self._journal.entries()
        for lease in self._in_flight.leases():
            jobs.pop(lease.job_id, None)  # the main thread cleans up after its own jobs
        later = [job_id for job_id in sorted(jobs) if job_id > self._last] or sorted(
            jobs
        )
        chosen = later[:BATCH]
        self._last = chosen[-1] if chosen else ""
        ended = [
            job_id
            for job_id, state in zip(chosen, self._states(chosen), strict=True)
            if state not in OPEN
        ]
        if ended:
            self._post(StaleFilesFound(tuple(jobs[job_id] for job_id in ended)))

    def _states(self, job_ids: list[str]) -> list[bytes | None]:
        if not job_ids:
            return []
        with translated(self._transitions.client):
            pipeline = self._transitions.client.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.hget(self._transitions.keys.job(job_id), "state")
            return list(pipeline.execute())
