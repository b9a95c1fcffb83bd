"""Scheduling: which worker gets which job, and how slots and rate are divided. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlpool.dataclass import dataclass

RESPAWN_FIRST_S = 0.1
RESPAWN_MAX_S = 10.0
IDLE_PART = 10  # all workers without a job together get at most 1/10 of the node's rate
HEALTHY_S = 10.0  # the death of a worker that has lived this long is not a failed start


@dataclass(frozen=True)
class WorkerSlots:
    """The free slots of one worker.

    A quarantine worker runs one quarantined job at a time and no other job. ``ahead``:
    how many more jobs may wait in the worker for a slot.
    """

    pid: int
    free: int
    busy: int
    is_quarantine: bool
    ahead: int = 0


@dataclass(frozen=True)
class WaitingJob:
    """A job that has no worker yet."""

    lease_id: str
    is_quarantined: bool


def assign(
    waiting: Sequence[WaitingJob], workers: Sequence[WorkerSlots]
) -> list[tuple[str, int]]:
    """Return the lease id and the worker's pid for each job that a worker can take.

    A job goes to the worker with the most free slots. If no worker has a free slot, the
    job goes to a worker in which it may wait for one. Quarantined jobs go to quarantine
    workers only.
    """
    slots = {worker.pid: worker for worker in workers}
    assigned: list[tuple[str, int]] = []
    for job in waiting:
        fitting = [worker for worker in slots.values() if _fits(worker, job)]
        if not fitting:
            continue
        best = max(fitting, key=lambda worker: worker.free)
        slots[best.pid] = replace(best, free=best.free - 1, busy=best.busy + 1)
        assigned.append((job.lease_id, best.pid))
    return assigned


def _fits(worker: WorkerSlots, job: WaitingJob) -> bool:
    return (
        worker.free + worker.ahead > 0
        and worker.is_quarantine == job.is_quarantined
        and not (worker.is_quarantine and worker.busy)
    )


def divide_slots(slots: int, workers: int) -> list[int]:
    """Divide ``slots`` among workers as evenly as possible.

    Return the slots of each worker. Each worker has at least one slot, so with fewer
    slots than ``workers`` the list has only ``slots`` entries.
    """
    workers = min(workers, slots)
    return [slots // workers + (number < slots % workers) for number in range(workers)]


def divide_rate(rate: int, demands: Sequence[int]) -> list[int]:
    """Return each worker's share of ``rate`` in bytes/s.

    ``demands``: number of jobs of each worker. If all demands are 0, the shares are
    equal. Otherwise shares are in proportion to the demands, and a worker without
    demand gets a small share, so that its first job can begin.
    """
    total, idle = sum(demands), max(1, rate // (IDLE_PART * max(1, len(demands))))
    if total == 0:
        return [rate // len(demands) for _ in demands]
    rest = rate - idle * demands.count(0)
    return [max(1, rest * demand // total) if demand else idle for demand in demands]


@dataclass(frozen=True)
class RespawnBackoff:
    """The time at which the next worker may be started.

    After the death of a worker that lived long, the next worker may start at once. The
    delay grows with each further worker that dies soon after its start.
    """

    failures: int = 0
    not_before: float = 0.0  # by the monotonic clock

    def after_death(self, lived_s: float, now: float) -> RespawnBackoff:
        """Return the backoff after the death of a worker that lived ``lived_s``
        seconds."""
        if lived_s >= HEALTHY_S:
            return RespawnBackoff()
        delay_s = 0.0
        if self.failures > 0:
            delay_s = min(RESPAWN_MAX_S, RESPAWN_FIRST_S * 2.0**self.failures)
        return RespawnBackoff(self.failures + 1, now + delay_s)
