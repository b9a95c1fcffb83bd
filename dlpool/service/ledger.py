"""The jobs that a supervisor holds."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from dlpool.jobs.pushed import PushedJob
from dlpool.jobs.transitions import Claimed, HostParts, Ticket
from dlpool.service.wire.frames import Ended, JobFrame
from dlpool.transfer.state import url_digest


@dataclass
class Held:
    """A job of ours.

    ``authority``: host and port in its URL. ``worker`` is the pid it runs in, None while it waits for a slot;
    ``is_ending``: it has left its worker, and Redis does not know yet. ``leased_until``: by ``lease_clock``, of the
    lease that its claim brought.
    """

    claimed: Claimed
    leased_until: float
    job: PushedJob | None = None
    trace_id: str = ""
    authority: str = ""
    worker: int | None = None
    dealt_at: float = 0.0  # by the monotonic clock
    is_finishing: bool = False
    is_ending: bool = False
    is_lost: bool = False
    progress: dict[str, Any] = field(default_factory=dict)
    missing: int = 0  # bytes that it will yet take of its disk
    is_kept: bool = True  # its next run can go on where this one ends
    yielding: str | None = None  # why it gives its slot to others, once it was told so
    path: str | None = None  # where it went, and whether something is to be removed there
    leaves_state: bool = True
    stack: str = ""  # of the error that ended it, for the log
    verb: str | None = None  # what an operator wants: cancel, pause
    host: str = ""  # of which it has, or wants, a slot; is_at_door: it is not known yet whether it has
    is_at_door: bool = False

    @property
    def ticket(self) -> Ticket:
        return self.claimed.ticket

    @property
    def is_idle(self) -> bool:
        """Whether it may be given to a worker, as far as it is concerned."""
        return not (self.is_ending or self.is_lost or self.is_at_door)

    @property
    def takes_room(self) -> bool:
        """Whether its place is not free for the next job."""
        return not (self.is_ending or self.is_finishing)


class Ledger:
    """What is held, and how many more may be. The lock guards the table and the capacity.

    The main thread alone changes what is held; the fetch and beat threads read.
    """

    def __init__(self, host_part: float = 1.0) -> None:
        """``host_part``: of the capacity, what one host gets while jobs of others wait; 1 is all of it."""
        self.host_part = host_part
        self.slow_hosts: tuple[str, ...] = ()  # all together they get slow_part_of the slots
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._capacity = 0
        self._busy = 0  # those that take room
        self._of_hosts: Counter[str] = Counter()  # of them, by authority
        self.has_room = threading.Event()

    def __repr__(self) -> str:
        return f"<Ledger {len(self._held)} of {self._capacity}>"

    def __len__(self) -> int:
        return len(self._held)

    def add(self, held: Held) -> bool:
        """Take a job in; False if it is there already."""
        with self._lock:
            ticket = str(held.ticket)
            if ticket in self._held:
                return False
            self._held[ticket] = held
            self._count(held.takes_room, held.authority)
            return True

    def mark_finishing(self, held: Held) -> None:
        """Its place is as good as free: the next job may be claimed."""
        with self._lock:
            before, held.is_finishing = held.takes_room, True
            self._count(held.takes_room - before, held.authority)

    def mark_ending(self, held: Held, *, is_ending: bool = True) -> None:
        """It has left its worker, and its place is free, although Redis does not know yet; or it goes on after all."""
        with self._lock:
            before, held.is_ending = held.takes_room, is_ending
            self._count(held.takes_room - before, held.authority)

    def drop(self, ticket: str) -> Held | None:
        """The job is none of ours any more."""
        with self._lock:
            held = self._held.pop(ticket, None)
            if held is not None:
                self._count(-held.takes_room, held.authority)
            return held

    @property
    def is_full(self) -> bool:
        """Whether each slot has a job, and no job is without: then one that ends makes room for another."""
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

    def get(self, ticket: str) -> Held | None:
        return self._held.get(ticket)

    def all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def set_capacity(self, jobs: int) -> None:
        """How many jobs the workers can have at once."""
        with self._lock:
            self._capacity = jobs
            self._count(0, "")

    def room(self) -> int:
        """How many more jobs may be claimed."""
        with self._lock:
            return max(0, self._capacity - self._busy)

    def parts(self) -> HostParts | None:
        """How slots are shared out while jobs of several hosts wait, for the next claim; None: all to anybody."""
        with self._lock:
            slow = self.slow_hosts
            if self.host_part >= 1 and not slow:
                return None
            most = part_of(self._capacity, self.host_part)
            close = most - (self._capacity - self._busy)
            held = {host: count for host, count in self._of_hosts.items() if host and count >= close}
            slow_held = sum(self._of_hosts[host] for host in slow if host in self._of_hosts)
            return HostParts(most, held, slow, slow_part_of(self._capacity, most), slow_held)

    def tickets(self) -> list[Ticket]:
        return [held.ticket for held in self.all()]

    def _count(self, more: int, host: str) -> None:
        self._busy += more
        self._of_hosts[host] += more
        if not self._of_hosts[host]:
            del self._of_hosts[host]
        has_room = self._busy < self._capacity
        if has_room and not self.has_room.is_set():
            self.has_room.set()
        elif not has_room and self.has_room.is_set():
            self.has_room.clear()


def slow_part_of(slots: int, most: int) -> int:
    """How many of the slots all slow hosts get together: a quarter, of what one host, with ``most``, does not get."""
    return max(0, min(slots - most, max(1, slots // 4)))


def part_of(slots: int, part: float) -> int:
    """How many of ``slots`` one host gets while jobs of others wait: at least one."""
    return max(1, int(slots * part))


def leftover(held: Held, job: PushedJob, path: str | None, *, has_failed: bool) -> Ended:
    """What a run of the job may leave behind; ``path``: where it went, if that is not as it was told."""
    return Ended(held.ticket.id, url_digest(job.url), job.save_path, path, has_failed, held.ticket.fence, held.trace_id)


def job_frame(held: Held, job: PushedJob) -> JobFrame:
    """The job as its worker is told of it."""
    ticket = held.ticket
    return JobFrame(
        str(ticket),
        ticket.id,
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
        held.claimed.claim,
    )


def is_told(path: str, save_path: str) -> bool:
    """Whether the save_path alone tells the path: its name is not the server's, nor made to be a free one."""
    return not save_path.endswith("/") and path.rpartition("/")[2] == save_path.rpartition("/")[2]
