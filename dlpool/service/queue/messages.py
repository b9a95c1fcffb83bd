"""The messages from the queue threads of a supervisor to its main thread, the mailbox
for these messages, and the requests of the main thread to the queue threads."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping

from dlpool.dataclass import dataclass
from dlpool.jobs.host_slots import HostLimit, SlotReply
from dlpool.jobs.transitions import ClaimedJob, FinishRequest, JobLease
from dlpool.service.wire.frames import CleanupEntry


@dataclass(frozen=True)
class JobsClaimed:
    """Jobs were claimed. ``leased_until``: when their leases end, by the clock
    ``lease_clock``."""

    jobs: tuple[ClaimedJob, ...]
    leased_until: float


@dataclass(frozen=True)
class WaitingHosts:
    """The number of jobs that wait for a slot, by host: the answer to
    ``JobClaimer.request_waiting_hosts``."""

    hosts: Mapping[str, int]


@dataclass(frozen=True)
class ResultRecorded:
    """Redis has replied to the result of a job.

    ``reply``: OK, DUP, FENCED, GONE, FOLLOWS or LEADS; see ``Transitions.finish``.
    """

    request: FinishRequest
    reply: str


@dataclass(frozen=True)
class FenceChecked:
    """The answer to ``ResultRecorder.check_fence``: whether this supervisor still holds
    the lease of a verified job."""

    lease_id: str
    is_ours: bool


@dataclass(frozen=True)
class HostSlotRequest:
    """A job requests a slot of its host; the answer is HostSlotAnswered.

    ``is_start_reserved``: whether an earlier request has already counted the start of
    this job against the host's ``rate_per_host``.
    """

    lease: JobLease
    limit: HostLimit
    is_start_reserved: bool


@dataclass(frozen=True)
class HostSlotAnswered:
    """The answer to a request for a slot of a host."""

    lease_id: str
    answer: SlotReply


@dataclass(frozen=True)
class HostHeld:
    """No requests may go to a host for ``duration_s`` seconds."""

    host: str
    duration_s: float


@dataclass(frozen=True)
class LeaseLost:
    """A heartbeat showed that this supervisor does not hold the lease of a job."""

    lease_id: str


@dataclass(frozen=True)
class StopRequested:
    """A heartbeat showed that an operator wants a job stopped. ``action`` is cancel or
    pause."""

    lease_id: str
    action: str


@dataclass(frozen=True)
class StateChanged:
    """The state of Redis, of a disk or of a thread has changed; the main thread must
    check it."""


@dataclass(frozen=True)
class JobsTakenBack:
    """The jobs of earlier starts were returned to the queue. ``sids``: the supervisor
    ids of these starts, for ``Node.forget_sids``."""

    sids: tuple[str, ...]


@dataclass(frozen=True)
class StaleFilesFound:
    """Jobs in the journal of this node have ended: their part and state files can be
    removed."""

    jobs: tuple[CleanupEntry, ...]


Message = (
    JobsClaimed
    | WaitingHosts
    | ResultRecorded
    | FenceChecked
    | HostSlotAnswered
    | HostHeld
    | LeaseLost
    | StopRequested
    | StateChanged
    | JobsTakenBack
    | StaleFilesFound
)


class Mailbox:
    """Messages from any thread or signal handler to the thread that selects on
    ``fileno``."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._is_woken = False  # and the reader has not read since
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        """Return the descriptor to select on."""
        return self._wake

    def post(self, message: Message) -> None:
        """Add a message and wake the reader."""
        self._messages.put(message)
        self.wake()

    def wake(self) -> None:
        """Wake the reader, with one system call for many messages.

        While ``_is_woken`` is set, no system call is needed: the reader clears
        ``_is_woken`` before it takes the messages.
        """
        if not self._is_woken:
            self._is_woken = True
            os.eventfd_write(self._wake, 1)

    def read(self) -> Iterator[Message]:
        """Yield the messages that have arrived."""
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            return
        self._is_woken = False
        while not self._messages.empty():
            yield self._messages.get()
