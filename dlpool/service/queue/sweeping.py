"""What is left of jobs that ended while this node was not there, or that others have
taken and ended."""

from __future__ import annotations

from collections.abc import Callable

from dlpool.jobs.connection import translated
from dlpool.jobs.transitions import Transitions
from dlpool.service.inflight import InFlightTable
from dlpool.service.journal import CleanupJournal
from dlpool.service.queue.messages import Message, StaleFilesFound

AT_ONCE = 500
OPEN = (b"queued", b"delayed", b"running", b"paused")


class StaleFileSweeper:
    """Used by the beat thread."""

    def __init__(
        self,
        transitions: Transitions,
        trail: CleanupJournal,
        ledger: InFlightTable,
        post: Callable[[Message], None],
    ) -> None:
        self._transitions = transitions
        self._trail = trail
        self._ledger = ledger
        self._post = post
        self._last = ""

    def sweep(self) -> None:
        """Find jobs on the trail that have ended, some at each call, and have removed
        what they kept.

        Raises QueueError.
        """
        jobs = self._trail.entries()
        for ticket in self._ledger.leases():
            jobs.pop(ticket.job_id, None)  # their ends come by themselves
        later = [job_id for job_id in sorted(jobs) if job_id > self._last] or sorted(
            jobs
        )
        chosen = later[:AT_ONCE]
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
