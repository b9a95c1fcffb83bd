"""The jobs that a supervisor holds."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dlpool.jobs.pushed_job import PushedJob
from dlpool.jobs.transitions import ClaimedJob, HostSlotShares, JobLease
from dlpool.service.wire.frames import CleanupEntry, JobFrame
from dlpool.transfer.target.state import url_digest


@dataclass
class InFlightJob:
    """A job of ours.

    ``authority``: host and port in its URL. ``worker`` is the pid it runs in, None
    while it waits for a slot; ``is_ending``: it has left its worker, and Redis does not
    know yet. ``leased_until``: by ``lease_clock``, of the lease that its claim brought.
    """

    claimed: ClaimedJob
    leased_until: float
    job: PushedJob | None = None
    trace_id: str = ""
    authority: str = ""
    worker_pid: int | None = None
    assigned_at: float = 0.0  # by the monotonic clock
    is_finishing: bool = False
    is_ending: bool = False
    is_lost: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    missing_bytes: int = 0  # bytes that it will yet take of its disk
    is_resumable: bool = True  # its next run can go on where this one ends
    yield_reason: str | None = (
        None  # why it gives its slot to others, once it was told so
    )
    path: str | None = (
        None  # where it went, and whether something is to be removed there
    )
    needs_cleanup: bool = True
    stack: str = ""  # of the error that ended it, for the log
    requested_action: str | None = None  # what an operator wants: cancel, pause
    # of which it has, or wants, a slot; is_at_door: it is not known yet whether it has
    slot_host: str = ""
    is_at_door: bool = False

    @property
    def lease(self) -> JobLease:
        return self.claimed.lease

    @property
    def is_idle(self) -> bool:
        """Whether it may be given to a worker, as far as it is concerned."""
        return not (self.is_ending or self.is_lost or self.is_at_door)

    @property
    def occupies_slot(self) -> bool:
        """Whether its place is not free for the next job."""
        return not (self.is_ending or self.is_finishing)


class InFlightTable:
    """What is held, and how many more may be. The lock guards the table and the
    capacity.

    The main thread alone changes what is held; the fetch and beat threads read.
    """

    def __init__(self, host_part: float = 1.0) -> None:
        """``host_part``: of the capacity, what one host gets while jobs of others wait;
        1 is all of it."""
        self.host_share = host_part
        self.slow_hosts: tuple[
            str, ...
        ] = ()  # all together they get slow_part_of the slots
        self._lock = threading.Lock()
        self._held: dict[str, InFlightJob] = {}
        self._capacity = 0
        self._busy = 0  # those that take room
        self._of_hosts: Counter[str] = Counter()  # of them, by authority
        self.has_free_slot = threading.Event()

    def __repr__(self) -> str:
        return f"<Ledger {len(self._held)} of {self._capacity}>"

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: InFlightJob) -> bool:
        """Take a job in; False if it is there already."""
        with self._lock:
            ticket = str(held.lease)
            if ticket in self._held:
                return False
            self._held[ticket] = held
            self._count(held.occupies_slot, held.authority)
            return True

    def mark_finishing(self, held: InFlightJob) -> None:
        """Its place is as good as free: the next job may be claimed."""
        with self._lock:
            before, held.is_finishing = held.occupies_slot, True
            self._count(held.occupies_slot - before, held.authority)

    def mark_ending(self, held: InFlightJob, *, is_ending: bool = True) -> None:
        """It has left its worker, and its place is free, although Redis does not know
        yet; or it goes on after all."""
        with self._lock:
            before, held.is_ending = held.occupies_slot, is_ending
            self._count(held.occupies_slot - before, held.authority)

    def remove(self, ticket: str) -> InFlightJob | None:
        """The job is none of ours any more."""
        with self._lock:
            held = self._held.pop(ticket, None)
            if held is not None:
                self._count(-held.occupies_slot, held.authority)
            return held

    @property
    def is_full(self) -> bool:
        """Whether each slot has a job, and no job is without: then one that ends makes
        room for another."""
        with self._lock:
            return self._busy == self._capacity > 0

    @property
    def capacity(self) -> int:
        """How many jobs may be held."""
        return self._capacity

    @property
    def busy(self) -> int:
        """How many jobs take room."""
        return self._busy

    def get(self, ticket: str) -> InFlightJob | None:
        return self._held.get(ticket)

    def all(self) -> list[InFlightJob]:
        with self._lock:
            return list(self._held.values())

    def set_capacity(self, jobs: int) -> None:
        """How many jobs the workers can have at once."""
        with self._lock:
            self._capacity = jobs
            self._count(0, "")

    def free_slots(self) -> int:
        """How many more jobs may be claimed."""
        with self._lock:
            return max(0, self._capacity - self._busy)

    def host_shares(self) -> HostSlotShares | None:
        """How slots are shared out while jobs of several hosts wait, for the next
        claim; None: all to anybody."""
        with self._lock:
            slow = self.slow_hosts
            if self.host_share >= 1 and not slow:
                return None
            most = host_quota(self._capacity, self.host_share)
            close = most - (self._capacity - self._busy)
            held = {
                host: count
                for host, count in self._of_hosts.items()
                if host and count >= close
            }
            slow_held = sum(
                self._of_hosts[host] for host in slow if host in self._of_hosts
            )
            return HostSlotShares(
                most, held, slow, slow_hosts_quota(self._capacity, most), slow_held
            )

    def leases(self) -> list[JobLease]:
        return [held.lease for held in self.all()]

    def _count(self, more: int, host: str) -> None:
        self._busy += more
        self._of_hosts[host] += more
        if not self._of_hosts[host]:
            del self._of_hosts[host]
        has_room = self._busy < self._capacity
        if has_room and not self.has_free_slot.is_set():
            self.has_free_slot.set()
        elif not has_room and self.has_free_slot.is_set():
            self.has_free_slot.clear()


def slow_hosts_quota(slots: int, most: int) -> int:
    """How many of the slots all slow hosts get together: a quarter, of what one host,
    with ``most``, does not get."""
    return max(0, min(slots - most, max(1, slots // 4)))


def host_quota(slots: int, part: float) -> int:
    """How many of ``slots`` one host gets while jobs of others wait: at least one."""
    return max(1, int(slots * part))


def cleanup_entry(
    held: InFlightJob, job: PushedJob, path: str | None, *, has_failed: bool
) -> CleanupEntry:
    """What a run of the job may leave behind; ``path``: where it went, if that is not
    as it was told."""
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
    """The job as its worker is told of it."""
    ticket = held.lease
    return JobFrame(
        str(ticket),
        ticket.job_id,
        ticket.fence,
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
    """Whether the save_path alone tells the path: its name is not the server's, nor
    made to be a free one."""
    return (
        not save_path.endswith("/")
        and path.rpartition("/")[2] == save_path.rpartition("/")[2]
    )
