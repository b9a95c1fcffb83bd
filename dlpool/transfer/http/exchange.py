"""One request and its response, which other threads can observe and cancel.

``shutdown(2)`` on a duplicate of the connection's socket ends a blocked read. The
method ``shutdown()`` of urllib3 cannot be used for that: on TLS it unwraps the
connection first, and the next read returns ciphertext as body.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from dlpool.dataclass import dataclass
from dlpool.errors import DlpoolError

_entered = threading.local()


class ExchangeStats(NamedTuple):
    """Bytes of body transferred, and seconds spent waiting for them."""

    received: int
    waited_s: float


@dataclass(frozen=True)
class OutgoingBody:
    """A request body: ``size`` bytes in blocks.

    The sender sends each block before it takes the next one from ``blocks``. An
    exception that ``blocks`` raises ends the request. ``timeout_s``: seconds without
    progress after which sending fails.
    """

    blocks: Iterable[bytes | memoryview]
    size: int
    timeout_s: float


class SocketShutdown:
    """Ends every wait on a socket, from any thread.

    Keeps a duplicate of the socket's descriptor until the last holder calls
    ``release``. Holders are the connection and its exchange: http.client may close a
    connection while the exchange still reads the last body. The lock prevents the use
    of a closed descriptor.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._holders = 1
        self._socket: socket.socket | None = sock.dup()

    def shut_down(self) -> None:
        """End connecting, the TLS handshake, reads and writes on the socket."""
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Add a holder, which must call ``release`` later."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """Remove a holder; the last one closes the duplicate descriptor."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._socket is not None:
                self._socket.close()
                self._socket = None


class Exchange:
    """A request in flight.

    The thread that sends the request enters the exchange as a context; other threads
    may cancel it and read its statistics. ``before``: the statistics of the previous
    exchange, to which this exchange adds its own. Only time spent waiting for the
    server counts, not disk writes or rate limits. ``sent_at``: when the request was
    sent, None while its body is being sent. ``is_reused``: the connection had served an
    earlier request. The lock guards ``cancel_error`` and the socket.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        pause: Callable[[float], None],
        before: ExchangeStats,
    ) -> None:
        self.clock = clock
        self.sleep = pause
        self.sent_at: float | None = None
        self.answered_at: float | None = None
        self.is_reused = False
        # called with the socket of a connection that was opened for this exchange
        self.on_connect: Callable[[socket.socket], None] | None = None
        self.received, self.waited_s = before
        self.waiting_since: float | None = None
        self.cancel_error: DlpoolError | None = None
        self._lock = threading.Lock()
        self._shutdown: SocketShutdown | None = None

    def __enter__(self) -> Exchange:
        _entered.exchange = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _entered.exchange = None
        if error is not None:
            self.detach()

    def cancel(self, error: DlpoolError) -> None:
        """Make the thread that has entered the exchange raise ``error``, and wake it.

        If the exchange was cancelled before, the thread raises the first error.
        """
        with self._lock:
            self.cancel_error = self.cancel_error or error
            shutdown = self._shutdown
        if shutdown is not None:
            shutdown.shut_down()

    def attach(self, shutdown: SocketShutdown) -> None:
        """Set the connection in use.

        If the exchange was cancelled before, raises the error given to ``cancel``.
        """
        shutdown.hold()
        self.detach()
        with self._lock:
            self._shutdown = shutdown
        self.check()

    def detach(self) -> None:
        """Release the connection: a late cancel must not affect its next user."""
        with self._lock:
            shutdown, self._shutdown = self._shutdown, None
        if shutdown is not None:
            shutdown.release()

    def check(self) -> None:
        """If the exchange was cancelled, raise the error given to ``cancel``."""
        if self.cancel_error is not None:
            raise self.cancel_error

    def begin_wait(self) -> None:
        """Start measuring waiting time."""
        self.waiting_since = self.clock()

    def end_wait(self, moved: int) -> None:
        """Stop measuring waiting time, and count ``moved`` bytes of body."""
        if self.waiting_since is not None:
            self.waited_s += self.clock() - self.waiting_since
        self.waiting_since = None
        self.received += moved

    def stats(self) -> ExchangeStats:
        """Return bytes and seconds so far, the wait in progress included."""
        since = self.waiting_since
        return ExchangeStats(
            self.received,
            self.waited_s + (self.clock() - since if since is not None else 0.0),
        )

    @property
    def answer_s(self) -> float | None:
        """Return the seconds from request to response header.

        None without a response.
        """
        if self.sent_at is None or self.answered_at is None:
            return None
        return self.answered_at - self.sent_at


def current_exchange() -> Exchange | None:
    """Return the exchange that the calling thread has entered, or None."""
    return getattr(_entered, "exchange", None)
