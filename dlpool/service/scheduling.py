"""Which worker gets which job, how many workers there should be, and when one may
start. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

RESPAWN_FIRST_S = 0.1
RESPAWN_MAX_S = 10.0
IDLE_PART = 10  # workers without a job have at most a tenth of the node's rate together
HEALTHY_S = 10.0  # a worker that lived so long was no failed start


@dataclass(frozen=True)
class WorkerSlots:
    """A worker: its pid, free slots and jobs; ``is_alone``: for one suspect job."""

    pid: int
    free: int
    busy: int
    is_alone: bool


@dataclass(frozen=True)
class WaitingJob:
    """A job that waits for a worker."""

    lease_id: str
    is_suspect: bool


def assign(
    waiting: Sequence[WaitingJob], seats: Sequence[WorkerSlots]
) -> list[tuple[str, int]]:
    """Ticket and pid for each job that has a place now: to the worker with the most
    free slots, suspects alone."""
    places = {seat.pid: seat for seat in seats}
    dealt: list[tuple[str, int]] = []
    for job in waiting:
        fitting = [seat for seat in places.values() if _fits(seat, job)]
        if not fitting:
            continue
        best = max(fitting, key=lambda seat: seat.free)
        places[best.pid] = replace(best, free=best.free - 1, busy=best.busy + 1)
        dealt.append((job.lease_id, best.pid))
    return dealt


def _fits(seat: WorkerSlots, job: WaitingJob) -> bool:
    return (
        seat.free > 0
        and seat.is_alone == job.is_suspect
        and not (seat.is_alone and seat.busy)
    )


def slots_of(slots: int, workers: int) -> list[int]:
    """``slots`` dealt over ``workers``, as evenly as possible, none without any."""
    workers = min(workers, slots)
    return [slots // workers + (number < slots % workers) for number in range(workers)]


def shares_of(rate: int, demands: Sequence[int]) -> list[int]:
    """``rate`` dealt over workers in proportion to their jobs; those without any get a
    little, to begin with."""
    total, idle = sum(demands), max(1, rate // (IDLE_PART * max(1, len(demands))))
    if total == 0:
        return [rate // len(demands) for _ in demands]
    rest = rate - idle * demands.count(0)
    return [max(1, rest * demand // total) if demand else idle for demand in demands]


@dataclass(frozen=True)
class RespawnBackoff:
    """When the next worker may be started: at once after one that had lived, later and
    later after failed starts."""

    failures: int = 0
    not_before: float = 0.0

    def after_death(self, lived_s: float, now: float) -> RespawnBackoff:
        """A worker has died."""
        if lived_s >= HEALTHY_S:
            return RespawnBackoff()
        delay = (
            0.0
            if self.failures == 0
            else min(RESPAWN_MAX_S, RESPAWN_FIRST_S * 2.0**self.failures)
        )
        return RespawnBackoff(self.failures + 1, now + delay)
