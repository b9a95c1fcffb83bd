"""What the threads of a supervisor tell its main thread, and what that wants of them."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dlpool.jobs.hostslots import HostLimit, Place
from dlpool.jobs.transitions import Claimed, Finish, Ticket
from dlpool.service.wire.frames import Ended


@dataclass(frozen=True)
class Claims:
    """Jobs that were claimed; ``leased_until`` by ``lease_clock``."""

    jobs: tuple[Claimed, ...]
    leased_until: float


@dataclass(frozen=True)
class Waiting:
    """How many jobs of which hosts wait for a slot: the answer to ``Fetcher.ask_who_waits``."""

    hosts: Mapping[str, int]


@dataclass(frozen=True)
class Recorded:
    """Redis has answered to the end of a job: OK, DUP, FENCED, GONE, FOLLOWS or LEADS."""

    ending: Finish
    reply: str


@dataclass(frozen=True)
class Stands:
    """Whether the fence of a verified job still stands."""

    ticket: str
    is_ours: bool


@dataclass(frozen=True)
class Wish:
    """A job wants a slot of its host; the answer is Placed."""

    ticket: Ticket
    limit: HostLimit
    is_paid: bool


@dataclass(frozen=True)
class Placed:
    """Whether there is one."""

    ticket: str
    place: Place


@dataclass(frozen=True)
class Hold:
    """A host does not want to be asked for so long."""

    host: str
    seconds: float


@dataclass(frozen=True)
class Lost:
    """A beat said that a job is another's by now."""

    ticket: str


@dataclass(frozen=True)
class Asked:
    """A beat said that an operator wants a job cancelled or paused; ``verb`` is that."""

    ticket: str
    verb: str


@dataclass(frozen=True)
class Changed:
    """Look again: Redis is away or back, a signal came, a thread has ended."""


@dataclass(frozen=True)
class TakenBack:
    """The jobs of earlier starts are given back; those sids may be forgotten."""

    sids: tuple[str, ...]


@dataclass(frozen=True)
class Swept:
    """Jobs that were begun here have ended, here or elsewhere: what they kept for a next run can go."""

    leftovers: tuple[Ended, ...]


Message = Claims | Waiting | Recorded | Stands | Placed | Hold | Lost | Asked | Changed | TakenBack | Swept


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
        self.ring()

    def ring(self) -> None:
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
