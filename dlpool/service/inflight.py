"""The in-flight table: the jobs whose leases this supervisor holds."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import field
from enum import Enum
from typing import Any

from dlpool.dataclass import dataclass
from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.transitions import ClaimedJob, HostSlotShares, JobLease
from dlpool.service.wire.frames import CleanupEntry, JobFrame
from dlpool.transfer.target.state import url_digest


class InFlightPhase(Enum):
    """The phase of a job between its claim and the record of its result."""

    AWAITING_HOST_SLOT = "awaiting_host_slot"
    """Redis has been asked for a slot of the job's origin host."""
    WAITING = "waiting"
    """No worker has been assigned yet."""
    RUNNING = "running"
    """A worker downloads the file."""
    AHEAD = "ahead"
    """A worker has the job, which waits there for a slot and occupies none."""
    FENCED_OFF = "fenced_off"
    """Another supervisor holds the lease. The worker has been told to stop; the result
    is discarded."""
    RECORDING = "recording"
    """The job has left its worker, and Redis has not confirmed its disposition yet."""


_WITHOUT_SLOT = (InFlightPhase.AHEAD, InFlightPhase.RECORDING)


@dataclass
class InFlightJob:
    """A claimed job. The main thread changes it; other threads only read it.

    ``leased_until``: when the lease of the claim expires, by ``lease_clock``.
    ``authority``: host and port of the URL. ``worker_pid``: None until a worker is
    assigned. ``slot_host``: the host whose slot the job holds or has asked for, '' if
    there is none. ``requested_action``: what an operator has requested, ``cancel`` or
    ``pause``, else None. ``yield_reason``: why the job has been told to yield its slot,
    else None. ``path``: where the worker wrote the file, None if unknown.
    """

    claimed: ClaimedJob
    leased_until: float
    job: PushedJob | None = None
    trace_id: str = ""
    authority: str = ""
    phase: InFlightPhase = InFlightPhase.WAITING
    worker_pid: int | None = None
    assigned_at: float = 0.0  # by the monotonic clock
    progress: dict[str, Any] = field(default_factory=dict)
    missing_bytes: int = 0  # bytes that the job has yet to allocate on its disk
    is_resumable: bool = True  # the next attempt can continue where this one stops
    yield_reason: str | None = None
    requested_action: str | None = None
    slot_host: str = ""
    path: str | None = None
    needs_cleanup: bool = True  # files may remain beside ``path``
    stack: str = ""  # of the error that ended the attempt, for the log

    @property
    def lease(self) -> JobLease:
        return self.claimed.lease

    @property
    def is_recording(self) -> bool:
        """Return whether the job waits only for Redis to record its disposition."""
        return self.phase is InFlightPhase.RECORDING

    @property
    def is_fenced_off(self) -> bool:
        """Return whether another supervisor holds the lease."""
        return self.phase is InFlightPhase.FENCED_OFF

    @property
    def holds_host_slot(self) -> bool:
        """Return whether the job holds a slot of ``slot_host``."""
        return bool(self.slot_host) and self.phase not in (
            InFlightPhase.AWAITING_HOST_SLOT,
            InFlightPhase.RECORDING,
        )

    @property
    def occupies_slot(self) -> bool:
        """Return whether the job occupies a slot of this node."""
        return self.phase not in _WITHOUT_SLOT


class InFlightTable:
    """The jobs in flight, and the slots that they occupy.

    The capacity is the number of slots. Jobs ahead are claimed before a slot is free
    and wait in workers. The lock guards the table, the counts, the capacity and the
    limit of jobs ahead. The main thread changes all of these; the claim thread changes
    only the limit of jobs ahead. The claim and heartbeat threads read them.
    """

    def __init__(self, host_share: float = 1.0) -> None:
        """Create an empty table without slots.

        ``host_share``: the part of the slots, from 0 to 1, that one host gets while
        jobs of other hosts wait; 1 means all slots.
        """
        self.host_share = host_share
        # together they get ``slow_hosts_quota`` slots
        self.slow_hosts: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._jobs: dict[str, InFlightJob] = {}
        self._capacity = 0
        self._busy = 0
        # jobs that run or will run, by authority
        self._by_host: Counter[str] = Counter()
        self._ahead = self._ahead_limit = 0
        # jobs shall be claimed: a slot is free, or half of the jobs ahead have begun
        self.has_free_slot = threading.Event()

    def __repr__(self) -> str:
        return f"<InFlightTable {len(self._jobs)} of {self._capacity}>"

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: InFlightJob) -> bool:
        """Add a job. Return False if its lease is in the table already."""
        with self._lock:
            lease_id = str(job.lease)
            if lease_id in self._jobs:
                return False
            self._jobs[lease_id] = job
            self._count(job, 1)
            self._signal()
            return True

    def set_phase(self, job: InFlightJob, phase: InFlightPhase) -> None:
        """Move a job to another phase, and free or occupy its slot accordingly."""
        with self._lock:
            self._count(job, -1)
            job.phase = phase
            self._count(job, 1)
            self._signal()

    def remove(self, lease_id: str) -> InFlightJob | None:
        """Remove a job and return it. Return None if the job is not in the table."""
        with self._lock:
            job = self._jobs.pop(lease_id, None)
            if job is not None:
                self._count(job, -1)
                self._signal()
            return job

    @property
    def is_full(self) -> bool:
        """Return whether the jobs occupy exactly all slots.

        If they do, a waiting job can start when a running job leaves. If there are no
        slots, or if the jobs occupy more slots than there are now, the result is False.
        """
        with self._lock:
            return self._busy == self._capacity > 0

    @property
    def capacity(self) -> int:
        """Return the number of slots."""
        return self._capacity

    @property
    def busy(self) -> int:
        """Return how many slots the jobs occupy."""
        return self._busy

    def get(self, lease_id: str) -> InFlightJob | None:
        return self._jobs.get(lease_id)

    def all(self) -> list[InFlightJob]:
        with self._lock:
            return list(self._jobs.values())

    def set_capacity(self, jobs: int) -> None:
        """Set the number of slots: how many jobs may run at once."""
        with self._lock:
            self._capacity = jobs
            self._signal()

    def set_ahead_limit(self, jobs: int) -> None:
        """Set how many jobs may wait in workers for slots that will soon be free."""
        with self._lock:
            self._ahead_limit = jobs
            self._signal()

    def free_slots(self) -> int:
        """Return how many more jobs may be claimed for free slots."""
        with self._lock:
            return max(0, self._capacity - self._busy)

    def free_ahead(self) -> int:
        """Return how many more jobs may be claimed to wait in workers, in addition to
        the jobs for free slots."""
        with self._lock:
            return self._free_ahead()

    def _free_ahead(self) -> int:
        if not self._capacity:
            return 0
        # jobs that no worker has yet count as busy
        over = max(0, self._busy - self._capacity)
        return max(0, self._ahead_limit - self._ahead - over)

    def host_shares(self, free: int, ahead: int = 0) -> HostSlotShares | None:
        """Return the bounds on the slots of each host for the next claim, None for no
        bounds.

        ``free``: number of free slots that the claim is for. ``ahead``: number of
        further jobs that it may take to wait in workers. A job that waits in a worker
        counts as if it had a slot.
        """
        with self._lock:
            slow = self.slow_hosts
            if self.host_share >= 1 and not slow:
                return None
            quota = host_quota(self._capacity, self.host_share)
            near_quota = quota - free - ahead
            held = {
                host: count
                for host, count in self._by_host.items()
                if host and count >= near_quota
            }
            slow_held = sum(
                self._by_host[host] for host in slow if host in self._by_host
            )
            return HostSlotShares(
                quota,
                held,
                slow,
                slow_hosts_quota(self._capacity, quota),
                slow_held,
                ahead,
            )

    def leases(self) -> list[JobLease]:
        return [job.lease for job in self.all()]

    def _count(self, job: InFlightJob, change: int) -> None:
        """Add ``change`` (1 or -1) to the counts for the phase and the host of a
        job."""
        host = job.authority
        if job.phase is InFlightPhase.RECORDING:
            return
        if job.phase is InFlightPhase.AHEAD:
            self._ahead += change
        else:
            self._busy += change
        self._by_host[host] += change
        if not self._by_host[host]:
            del self._by_host[host]

    def _signal(self) -> None:
        has_free_slot = (
            self._busy < self._capacity or self._free_ahead() > self._ahead_limit // 2
        )
        if has_free_slot and not self.has_free_slot.is_set():
            self.has_free_slot.set()
        elif not has_free_slot and self.has_free_slot.is_set():
            self.has_free_slot.clear()


def host_quota(slots: int, share: float) -> int:
    """Return how many of ``slots`` one host gets while jobs of other hosts wait.

    The result is at least 1.
    """
    return max(1, int(slots * share))


def slow_hosts_quota(slots: int, quota: int) -> int:
    """Return how many of ``slots`` all slow hosts get together.

    The result is a quarter of ``slots`` (at least 1), or ``slots - quota`` if that is
    less. ``quota``: the result of ``host_quota``. A host is slow for a while after a
    slow download from it has yielded a slot.
    """
    return max(0, min(slots - quota, max(1, slots // 4)))


def cleanup_entry(
    held: InFlightJob, job: PushedJob, path: str | None, *, has_failed: bool
) -> CleanupEntry:
    """Return the journal entry for the files that an attempt may leave behind.

    ``path``: the target file, None if ``save_path`` alone determines it.
    """
    return CleanupEntry(
        held.lease.job_id,
        url_digest(job.url),
        job.save_path,
        path,
        has_failed,
        held.lease.fence,
        held.trace_id,
    )


def job_frame(held: InFlightJob, job: PushedJob) -> JobFrame:
    """Return the frame that assigns a job to a worker."""
    lease = held.lease
    return JobFrame(
        str(lease),
        lease.job_id,
        lease.fence,
        held.leased_until,
        held.claimed.attempts,
        job.url,
        job.save_path,
        held.trace_id,
        job.user_id,
        dict(job.headers),
        str(job.checksum) if job.checksum else None,
        job.if_exists,
        job.limit_rate,
        job.scan,
        held.claimed.claim_id,
    )


def is_path_implied(path: str, save_path: str) -> bool:
    """Return whether ``save_path`` alone determines ``path``.

    Return False if the server named the file, or if the worker added a number because
    the name was taken.
    """
    return (
        not save_path.endswith("/")
        and path.rpartition("/")[2] == save_path.rpartition("/")[2]
    )
