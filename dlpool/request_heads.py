"""Request heads that are not complete yet, bounded in size and with a deadline each.

A server that keeps waiting connections in ``PendingHeads`` needs no thread for a silent
or slow client. A head ends with an empty line, and each line ends with CRLF (RFC 9112,
section 2.2).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import field
from enum import Enum
from typing import Generic, TypeVar

from dlpool.dataclass import dataclass

MAX_HEAD = 32 * 1024  # bytes
MAX_LINE = 8194  # bytes without a line end; a parser rejects longer lines
# The end of a head; a bare LF, too, because the parser rejects it.
_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")

Connection = TypeVar("Connection")


class HeadProgress(Enum):
    """State of a request head.

    ``COMPLETE``: the head has ended, or is invalid already: a line ends without CR, or
    the first line is too long. ``TOO_LONG``: the head has more than ``MAX_HEAD`` bytes
    and has not ended.
    """

    PARTIAL = "partial"
    COMPLETE = "complete"
    TOO_LONG = "too long"


@dataclass
class _PendingHead:
    deadline: float
    data: bytearray = field(default_factory=bytearray)
    progress: HeadProgress = HeadProgress.PARTIAL

    def feed(self, data: bytes) -> HeadProgress:
        seen = max(0, len(self.data) - 3)
        self.data += data
        is_complete = _END.search(self.data, seen) or (
            len(self.data) > MAX_LINE and self.data.find(b"\n", 2) < 0
        )
        if is_complete:
            self.progress = HeadProgress.COMPLETE
        elif len(self.data) > MAX_HEAD:
            self.progress = HeadProgress.TOO_LONG
        return self.progress


class PendingHeads(Generic[Connection]):
    """Pending heads by connection, the oldest first. Used by one thread.

    All deadlines are seconds of the same clock, which the caller chooses. ``feed``,
    ``remove`` and ``is_empty`` raise KeyError for an unknown connection.
    """

    def __init__(self) -> None:
        self._pending: dict[Connection, _PendingHead] = {}
        self._next = math.inf  # lower bound of all deadlines

    def __len__(self) -> int:
        return len(self._pending)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._pending

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._pending)

    def add(self, connection: Connection, deadline: float) -> None:
        """Start waiting for a head, until ``deadline``."""
        self._pending[connection] = _PendingHead(deadline)
        self._next = min(self._next, deadline)

    def feed(
        self, connection: Connection, data: bytes, deadline: float
    ) -> HeadProgress:
        """Add received bytes. If they are the first bytes of the head, the head gets
        the new ``deadline``; otherwise ``deadline`` is ignored."""
        head = self._pending[connection]
        if not head.data:
            head.deadline = deadline
            self._next = min(self._next, deadline)
        return head.feed(data)

    def remove(self, connection: Connection) -> bytes:
        """Remove a connection and return its received bytes: the head, and perhaps
        bytes after it."""
        return bytes(self._pending.pop(connection).data)

    def oldest(self) -> Connection | None:
        """Return the connection that was added first, None if there is none."""
        return next(iter(self._pending), None)

    def expired(self, now: float) -> list[Connection]:
        """Return the connections whose deadline has passed."""
        if now < self._next:
            return []
        self._next = min(
            (head.deadline for head in self._pending.values() if head.deadline > now),
            default=math.inf,
        )
        return [
            connection
            for connection, head in self._pending.items()
            if head.deadline <= now
        ]

    def next_timeout_s(self, now: float) -> float:
        """Return the longest time to wait before the next call of ``expired``, in
        seconds."""
        return max(0.0, self._next - now)

    def cap_deadlines(self, deadline: float) -> None:
        """Lower the deadline of connections without received bytes to ``deadline``."""
        for head in self._pending.values():
            if not head.data:
                head.deadline = min(head.deadline, deadline)
        self._next = min(self._next, deadline)

    def is_empty(self, connection: Connection) -> bool:
        """Return whether no bytes of the head were received."""
        return not self._pending[connection].data


def parse_target(head: bytes) -> tuple[str, str]:
    """Return the method of a request, and its path without the query; empty texts if
    the first line is invalid."""
    line = head[:MAX_LINE].lstrip(b"\r\n").partition(b"\n")[0].rstrip(b"\r").split(b" ")
    if len(line) != 3:
        return "", ""
    method, target = (part.decode("latin-1") for part in line[:2])
    return method, target.partition("?")[0]
