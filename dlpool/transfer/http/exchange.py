"""One request and its answer, so that other threads can watch it and end it.

A blocked read is ended with ``shutdown(2)`` on a duplicate of the connection's socket.
Not with urllib3's ``shutdown()``: on TLS that unwraps the connection first, and the
next read returns ciphertext as body.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from dlpool.errors import DlpoolError

_running = threading.local()


class ExchangeStats(NamedTuple):
    """Bytes of body that moved, either way, and seconds spent waiting for that."""

    received: int
    waited_s: float


@dataclass(frozen=True)
class OutgoingBody:
    """What a request carries: ``size`` bytes in blocks, each sent before the next is
    asked for.

    ``timeout_s``: for how long nothing more of it may be sent. What ``blocks`` raises
    ends the request.
    """

    blocks: Iterable[bytes | memoryview]
    size: int
    timeout_s: float


class SocketShutdown:
    """Ends whatever a thread waits for on a socket.

    Held by the connection, and by the exchange that uses it: http.client closes a
    connection while its last body is still being read. The lock guards that a closed
    descriptor is never used.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._lock = threading.Lock()
        self._holders = 1
        self._socket: socket.socket | None = sock.dup()

    def shut_down(self) -> None:
        """End connecting, the TLS handshake, reads and writes, in whichever thread they
        are."""
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """One more holder."""
        with self._lock:
            self._holders += 1

    def release(self) -> None:
        """One holder less; the last one closes."""
        with self._lock:
            self._holders -= 1
            if self._holders == 0 and self._socket is not None:
                self._socket.close()
                self._socket = None


class Exchange:
    """A request in flight. Entered by the thread that makes it; ``abort`` and the
    figures are for all others.

    ``figures`` go on from ``before``, those of the exchange before this one: only the
    server's time counts, not ours at the disk or in a rate limit. ``asked_at``: when
    the request had been sent, None while its body is. The lock guards ``verdict`` and
    the breaker.
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
        self.received, self.read_s = before
        self.reading_since: float | None = None
        self.cancel_error: DlpoolError | None = None
        self._lock = threading.Lock()
        self._breaker: SocketShutdown | None = None

    def __enter__(self) -> Exchange:
        _running.exchange = self
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _running.exchange = None
        if error is not None:
            self.detach()

    def cancel(self, error: DlpoolError) -> None:
        """Make the thread inside raise ``error`` as soon as it wakes; the first error
        stands."""
        with self._lock:
            self.cancel_error = self.cancel_error or error
            breaker = self._breaker
        if breaker is not None:
            breaker.shut_down()

    def attach(self, breaker: SocketShutdown) -> None:
        """The connection in use; raises the verdict if there is one already."""
        breaker.hold()
        self.detach()
        with self._lock:
            self._breaker = breaker
        self.check()

    def detach(self) -> None:
        """The connection goes back to its pool: an abort that comes late must not hit
        its next user."""
        with self._lock:
            breaker, self._breaker = self._breaker, None
        if breaker is not None:
            breaker.release()

    def check(self) -> None:
        """Raise the verdict, if any."""
        if self.cancel_error is not None:
            raise self.cancel_error

    def begin_wait(self) -> None:
        """From now on it is the server that we wait for."""
        self.reading_since = self.clock()

    def end_wait(self, moved: int) -> None:
        """So many bytes of body have moved."""
        if self.reading_since is not None:
            self.read_s += self.clock() - self.reading_since
        self.reading_since = None
        self.received += moved

    def stats(self) -> ExchangeStats:
        """Bytes and seconds so far, the present wait included."""
        since = self.reading_since
        return ExchangeStats(
            self.received,
            self.read_s + (self.clock() - since if since is not None else 0.0),
        )

    @property
    def answer_s(self) -> float | None:
        """Seconds that the last answer took to come; None while there is none."""
        if self.sent_at is None or self.answered_at is None:
            return None
        return self.answered_at - self.sent_at


def current_exchange() -> Exchange | None:
    """The exchange that this thread is in."""
    return getattr(_running, "exchange", None)
