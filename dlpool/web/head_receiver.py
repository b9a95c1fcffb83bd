"""Receives request heads in an event loop, so that incomplete heads need no threads."""

from __future__ import annotations

import selectors
import socket
import time
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeVar

from dlpool.dataclass import dataclass
from dlpool.request_heads import MAX_HEAD, HeadProgress, PendingHeads
from dlpool.web.raw_responses import HEAD_TOO_LONG, TIMEOUT, RawError

_RECV_SIZE = 8192


class HasSocket(Protocol):
    """A connection with a socket."""

    @property
    def sock(self) -> socket.socket:
        """Return the socket of the connection."""


C = TypeVar("C", bound=HasSocket)
C_contra = TypeVar("C_contra", bound=HasSocket, contravariant=True)


class HeadHandler(Protocol[C_contra]):
    """Continues with a connection when the receiver no longer waits for its head."""

    def on_head(self, connection: C_contra, head: bytes) -> None:
        """Handle a complete head; ``head`` may contain further bytes after its end."""

    def on_invalid_head(
        self, connection: C_contra, error: RawError, reason: str, text: str
    ) -> None:
        """Reject an overdue or too long head."""

    def on_no_head(self, connection: C_contra) -> None:
        """Close a connection that sent no complete head."""


@dataclass
class HeadReceiver(Generic[C]):
    """Waits for the heads of connections. Used by the thread of the event loop.

    ``timeout_s``: the seconds within which a head must be complete, from its first
    byte.
    """

    poller: selectors.BaseSelector
    timeout_s: float
    handler: HeadHandler[C]

    def __post_init__(self) -> None:
        self._heads: PendingHeads[C] = PendingHeads()

    def add(self, connection: C, data: bytes, timeout_s: float) -> None:
        """Wait for a head; ``data`` is the part that has already been received.

        The first byte of the head must arrive within ``timeout_s`` seconds. Raises
        OSError or ValueError if the connection is closed.
        """
        connection.sock.setblocking(False)
        on_readable = partial(self._receive, connection)
        self.poller.register(connection.sock, selectors.EVENT_READ, on_readable)
        self._heads.add(connection, time.monotonic() + timeout_s)
        if data:
            self._feed(connection, data)

    def next_timeout_s(self) -> float:
        """Return the seconds until the next head may become overdue."""
        return self._heads.next_timeout_s(time.monotonic())

    def cap_deadlines(self, deadline: float) -> None:
        """Lower the deadline of connections without received bytes to ``deadline``."""
        self._heads.cap_deadlines(deadline)

    def close_overdue(self) -> None:
        """Reject overdue heads, and close overdue connections without received
        bytes."""
        for connection in self._heads.expired(time.monotonic()):
            if self._heads.is_empty(connection):
                self._drop(connection)
            else:
                self._remove(connection)
                text = "the request head was not received in time"
                self.handler.on_invalid_head(connection, TIMEOUT, "HeadTooSlow", text)

    def close_oldest(self, count: int) -> int:
        """Close up to ``count`` waiting connections; return how many were closed."""
        oldest = list(islice(self._heads, count))
        for connection in oldest:
            self._drop(connection)
        return len(oldest)

    def close_all(self) -> None:
        """Close all waiting connections."""
        self.close_oldest(len(self._heads))

    def _receive(self, connection: C, _sock: socket.socket) -> None:
        """Read bytes of a head."""
        if connection not in self._heads:  # closed in this iteration of the loop
            return
        try:
            data = connection.sock.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._feed(connection, data)
        else:
            self._drop(connection)

    def _feed(self, connection: C, data: bytes) -> None:
        deadline = time.monotonic() + self.timeout_s
        progress = self._heads.feed(connection, data, deadline)
        if progress is HeadProgress.PARTIAL:
            return
        head = self._remove(connection)
        if progress is HeadProgress.COMPLETE:
            self.handler.on_head(connection, head)
        else:
            self.handler.on_invalid_head(
                connection,
                HEAD_TOO_LONG,
                "LimitRequestHeaders",
                f"invalid HTTP request: the head is longer than {MAX_HEAD} bytes",
            )

    def _remove(self, connection: C) -> bytes:
        self.poller.unregister(connection.sock)
        return self._heads.remove(connection)

    def _drop(self, connection: C) -> None:
        self._remove(connection)
        self.handler.on_no_head(connection)
