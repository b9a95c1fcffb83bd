"""What the threads of a supervisor tell its main thread, and what that wants of
them."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dlpool.jobs.host_slots import HostLimit, SlotReply
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.service.wire.frames import CleanupEntry


@dataclass(frozen=True)
class JobsClaimed:
    """Jobs that were claimed; ``leased_until`` by ``lease_clock``."""

    jobs: tuple[ClaimedJob, ...]
    leased_until: float


@dataclass(frozen=True)
class WaitingHosts:
    """How many jobs of which hosts wait for a slot: the answer to
    ``JobClaimer.ask_who_waits``."""

    hosts: Mapping[str, int]


@dataclass(frozen=True)
class ResultRecorded:
    """Redis has answered to the end of a job: OK, DUP, FENCED, GONE, FOLLOWS or
    LEADS."""

    finish: FinishRequest
    reply: str


@dataclass(frozen=True)
class FenceChecked:
    """Whether the fence of a verified job still stands."""

    lease_id: str
    is_ours: bool


@dataclass(frozen=True)
class HostSlotRequest:
    """A job wants a slot of its host; the answer is Placed."""

    lease: JobLease
    limit: HostLimit
    has_start_token: bool


@dataclass(frozen=True)
class HostSlotDecided:
    """Whether there is one."""

    lease_id: str
    decision: SlotReply


@dataclass(frozen=True)
class HostHeld:
    """A host does not want to be asked for so long."""

    host: str
    duration_s: float


@dataclass(frozen=True)
class LeaseLost:
    """A beat said that a job is another's by now."""

    lease_id: str


@dataclass(frozen=True)
class StopRequested:
    """A beat said that an operator wants a job cancelled or paused; ``verb`` is
    that."""

    lease_id: str
    action: str


@dataclass(frozen=True)
class StateChanged:
    """Look again: Redis is away or back, a signal came, a thread has ended."""


@dataclass(frozen=True)
class JobsTakenBack:
    """The jobs of earlier starts are given back; those sids may be forgotten."""

    sids: tuple[str, ...]


@dataclass(frozen=True)
class StaleFilesFound:
    """Jobs that were begun here have ended, here or elsewhere: what they kept for a
    next run can go."""

    jobs: tuple[CleanupEntry, ...]


Message = (
    JobsClaimed
    | WaitingHosts
    | ResultRecorded
    | FenceChecked
    | HostSlotDecided
    | HostHeld
    | LeaseLost
    | StopRequested
    | StateChanged
    | JobsTakenBack
    | StaleFilesFound
)


class Mailbox:
    """From any thread, or a signal handler, to the one that selects on ``fileno``."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """For selectors."""
        return self._wake

    def post(self, message: Message) -> None:
        """Leave a message."""
        self._messages.put(message)
        self.wake()

    def wake(self) -> None:
        """Wake the reader."""
        os.eventfd_write(self._wake, 1)

    def read(self) -> Iterator[Message]:
        """What was left until now."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        while not self._messages.empty():
            yield self._messages.get()
