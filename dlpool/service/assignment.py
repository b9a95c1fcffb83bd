"""The assignment of jobs to workers, and the recall of jobs that wait in a worker too
long.

A worker may have more jobs than slots, so that a slot need not wait for the supervisor
between two short jobs. A job *ahead* waits in its worker for a slot. It is claimed and
its lease is renewed like that of a running job, but it occupies no slot of the node. A
worker begins its jobs in the order of their assignment, and reports a result before the
slot begins the next job. Therefore the supervisor knows which jobs have begun.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from dlpool.errors import InternalError
from dlpool.service.cleanup import CleanupDispatcher
from dlpool.service.inflight import (
    InFlightJob,
    InFlightPhase,
    InFlightTable,
    cleanup_entry,
    job_frame,
)
from dlpool.service.pool import WorkerPool
from dlpool.service.scheduling import WaitingJob, assign
from dlpool.service.wire.frames import RecallFrame
from dlpool.service.worker_handle import RECALL_S, WorkerHandle


class JobAssigner:
    """The sender of jobs to workers. It recalls jobs that wait in workers too long.

    Used by the main thread only.
    """

    def __init__(
        self, in_flight: InFlightTable, pool: WorkerPool, cleanup: CleanupDispatcher
    ) -> None:
        self._in_flight = in_flight
        self._pool = pool
        self._cleanup = cleanup

    def assign(self, waiting: Sequence[WaitingJob]) -> list[InFlightJob]:
        """Send ``waiting`` jobs to workers that have, or will soon have, a free slot.

        Return the jobs that are too large for a frame, which were not sent.
        """
        too_large, entries = [], []
        for lease_id, pid in assign(waiting, self._pool.worker_slots()):
            held, worker = self._in_flight.get(lease_id), self._pool.workers[pid]
            assert held is not None and held.job is not None
            try:
                worker.send(job_frame(held, held.job))
            except InternalError:
                too_large.append(held)
                continue
            entries.append(cleanup_entry(held, held.job, None, has_failed=True))
            held.worker_pid, held.assigned_at = pid, time.monotonic()
            begins = worker.assign(lease_id, held.assigned_at)
            self._in_flight.set_phase(
                held, InFlightPhase.RUNNING if begins else InFlightPhase.AHEAD
            )
            self._pool.retire_after_limit(worker)
        if entries:
            self._cleanup.record_start(*entries)
        return too_large

    def end(self, worker: WorkerHandle, lease_id: str) -> None:
        """Remove an ended job from its worker. If another job begins there now, mark
        that job as running."""
        now = time.monotonic()
        begun = worker.remove(lease_id, now)
        held = self._in_flight.get(begun) if begun is not None else None
        if held is not None and held.phase is InFlightPhase.AHEAD:
            held.assigned_at = now
            self._in_flight.set_phase(held, InFlightPhase.RUNNING)

    def recall(self, *, at_once: bool = False) -> None:
        """Ask workers to return the jobs that have waited in them for ``RECALL_S``
        seconds; with ``at_once``, all jobs that wait in them."""
        now = math.inf if at_once else time.monotonic()
        for worker in self._pool.workers.values():
            for lease_id in worker.overdue(now):
                worker.send(RecallFrame(lease_id))

    def surplus(self) -> list[InFlightJob]:
        """Return jobs that exceed the node's slots and have waited ``RECALL_S`` seconds
        for a worker with room. The jobs that were claimed last come first."""
        count = self._in_flight.busy - self._in_flight.capacity
        if count <= 0:
            return []
        now = time.monotonic()
        overdue = [
            one
            for one in self._in_flight.all()
            if one.phase is InFlightPhase.WAITING and now - one.assigned_at >= RECALL_S
        ]
        return overdue[::-1][:count]
