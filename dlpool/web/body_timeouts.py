"""Timeouts for request bodies: a socket that aborts the read from a stalled or slow
client."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from dlpool.web.body import BLOCK_SIZE, BodyTooSlow

CALLBACK_S = 0.25  # maximum interval of the callback while waiting


class BodyTimeouts:
    """Limits for a slow client. Used by one thread.

    A client may pause for less than ``timeout_s`` seconds, and must send ``rate`` bytes
    per second on average over ``window_s`` seconds (``rate`` 0: no minimum). Only time
    spent waiting for the client counts.
    """

    def __init__(self, timeout_s: float, rate: int, window_s: float) -> None:
        self._timeout_s = timeout_s
        self._rate = rate
        self._window_s = window_s
        self._waited_s = 0.0
        self._received = 0

    def next_wait_s(self) -> float:
        """Return the maximum number of seconds to wait for bytes before the next call
        of ``record``."""
        return (
            min(self._timeout_s, max(0.001, self._window_s - self._waited_s))
            if self._rate
            else self._timeout_s
        )

    def record(self, received: int, waited_s: float) -> None:
        """Record that ``received`` bytes arrived after a wait of ``waited_s`` seconds.

        Raises BodyTooSlow if the client exceeds a limit.
        """
        self._waited_s += waited_s
        self._received += received
        if not received and waited_s >= self._timeout_s:
            raise BodyTooSlow(f"no bytes for {self._timeout_s:g} s")
        if self._rate and self._waited_s >= self._window_s:
            if self._received < self._rate * self._window_s:
                raise BodyTooSlow(
                    f"less than {self._rate} bytes per second for {self._window_s:g} s"
                )
            self._waited_s, self._received = 0.0, 0


class TimedSocket:
    """The socket of a connection, with timeouts for bodies. For one thread at a time.

    ``sock`` must have a timeout while a body is received: Python then makes its
    descriptor non-blocking, so that ``os.read`` does not wait.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeouts: BodyTimeouts | None = None
        self._callback: Callable[[], None] | None = None
        self._called_at = 0.0
        self.received = 0  # bytes of bodies on this connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def stop_reading(self) -> None:
        """Let ``recv`` return ``b""`` until the next ``start_body``. Called when the
        complete head has been received."""
        self._timeouts, self._callback = None, None

    def start_body(self, timeouts: BodyTimeouts) -> None:
        """Allow reads of a body with these timeouts."""
        self._timeouts, self._callback = timeouts, None

    def call_while_waiting(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` repeatedly while a read waits. An exception from
        ``callback`` aborts the read."""
        self._callback = callback

    def recv(self, size: int) -> bytes:
        """Return up to ``size`` bytes, ``b""`` at the end. Raises BodyTooSlow, OSError,
        and the errors of the callback."""
        size = min(size, BLOCK_SIZE)
        if self._timeouts is None:
            return b""
        waited_s = 0.0
        while True:
            try:
                # sock.recv would call poll(2) each time.
                data = os.read(self._sock.fileno(), size)
            except BlockingIOError:
                waited_s += self._await_body(self._timeouts)
                continue
            self._timeouts.record(len(data), waited_s)
            self.received += len(data)
            return data

    def _await_body(self, timeouts: BodyTimeouts) -> float:
        """Wait for bytes. Return the seconds waited since the last call of
        ``timeouts.record``."""
        started_at = time.monotonic()
        # Without this call, a series of short waits would never call the callback.
        if self._callback is not None and started_at - self._called_at > CALLBACK_S:
            self._called_at = started_at
            self._callback()
        while not self._wait_readable(timeouts.next_wait_s()):
            timeouts.record(0, time.monotonic() - started_at)
            started_at = time.monotonic()
        return time.monotonic() - started_at

    def _wait_readable(self, timeout_s: float) -> bool:
        """Wait up to ``timeout_s`` seconds; return whether the socket is readable."""
        poll, deadline = select.poll(), time.monotonic() + timeout_s
        poll.register(self._sock, select.POLLIN)
        while (
            self._callback is not None
            and (timeout_s := deadline - time.monotonic()) > CALLBACK_S
        ):
            if poll.poll(CALLBACK_S * 1000):
                return True
            self._callback()
        return bool(poll.poll(max(0.0, timeout_s) * 1000 + 1))
