"""Connections of which the head of a request has not come whole: bounded bytes each,
and known by age.

A server that keeps them here needs no thread for a client that says nothing, or drips
(RFC 9112, section 2.2: a head ends with an empty line, and each of its lines with
CRLF).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

MAX_HEAD = 32 * 1024  # bytes
MAX_LINE = 8194  # bytes without an end of the line: a parser refuses them
_END = re.compile(
    rb"\r\n\r\n|(?<!\r)\n"
)  # of a head, or of the patience of a parser: a bare LF is refused

Connection = TypeVar("Connection")


class HeadProgress(Enum):
    """How much of a head has come. ``WHOLE``: all, or enough to see that it is none."""

    PARTIAL = "partial"
    COMPLETE = "whole"
    TOO_LONG = "too long"


@dataclass
class _PendingHead:
    until: float
    data: bytearray = field(default_factory=bytearray)
    progress: HeadProgress = HeadProgress.PARTIAL

    def feed(self, data: bytes) -> HeadProgress:
        seen = max(0, len(self.data) - 3)
        self.data += data
        is_whole = _END.search(self.data, seen) or (
            len(self.data) > MAX_LINE and self.data.find(b"\n", 2) < 0
        )
        if is_whole:
            self.progress = HeadProgress.COMPLETE
        elif len(self.data) > MAX_HEAD:
            self.progress = HeadProgress.TOO_LONG
        return self.progress


class PendingHeads(Generic[Connection]):
    """By connection, the oldest first. ``feed`` and ``take`` raise KeyError for an
    unknown one. Used by one thread."""

    def __init__(self) -> None:
        self._held: dict[Connection, _PendingHead] = {}
        self._next = math.inf  # no head is due before

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._held

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._held)

    def add(self, connection: Connection, until: float) -> None:
        """Nothing has come of its next request, and it is due at ``until``, by any
        clock."""
        self._held[connection] = _PendingHead(until)
        self._next = min(self._next, until)

    def feed(self, connection: Connection, data: bytes, until: float) -> HeadProgress:
        """More of it has come; with the first bytes, the rest is due at ``until``."""
        head = self._held[connection]
        if not head.data:
            head.until = until
            self._next = min(self._next, until)
        return head.feed(data)

    def remove(self, connection: Connection) -> bytes:
        """Forget it, and return what has come: the head, and perhaps more."""
        return bytes(self._held.pop(connection).data)

    def oldest(self) -> Connection | None:
        """The one that has been here for the longest time; None if there is none."""
        return next(iter(self._held), None)

    def expired(self, now: float) -> list[Connection]:
        """Those whose time is over."""
        if now < self._next:
            return []
        self._next = min(
            (head.until for head in self._held.values() if head.until > now),
            default=math.inf,
        )
        return [
            connection for connection, head in self._held.items() if head.until <= now
        ]

    def next_timeout_s(self, now: float) -> float:
        """How long until the next one may be due; infinite if none is here."""
        return max(0.0, self._next - now)

    def cap_deadlines(self, until: float) -> None:
        """Those that have said nothing are due at ``until`` at the latest."""
        for head in self._held.values():
            if not head.data:
                head.until = min(head.until, until)
        self._next = min(self._next, until)

    def is_empty(self, connection: Connection) -> bool:
        """Whether nothing of a request has come."""
        return not self._held[connection].data


def parse_target(head: bytes) -> tuple[str, str]:
    """The method of a request, and its path without a query; empty texts for what is no
    request."""
    line = head[:MAX_LINE].lstrip(b"\r\n").partition(b"\n")[0].rstrip(b"\r").split(b" ")
    if len(line) != 3:
        return "", ""
    method, target = (part.decode("latin-1") for part in line[:2])
    return method, target.partition("?")[0]
