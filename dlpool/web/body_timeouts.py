"""How slow a client may be: a socket that gives up on one that stalls or drips."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from dlpool.web.body import BLOCK_SIZE, BodyTooSlow

TURN_S = 0.25  # between two questions, whether to wait on, at the most


class BodyTimeouts:
    """How slow a client may be: ``timeout_s`` of silence; ``rate`` bytes a second over
    each ``window_s`` of waiting.

    Only the time in which we wait for the client counts. Used by one thread.
    """

    def __init__(self, timeout_s: float, rate: int, window_s: float) -> None:
        self._timeout_s = timeout_s
        self._rate = rate
        self._window_s = window_s
        self._waited_s = 0.0
        self._got = 0

    def next_wait_s(self) -> float:
        """How long to wait for the next bytes."""
        return (
            min(self._timeout_s, max(0.001, self._window_s - self._waited_s))
            if self._rate
            else self._timeout_s
        )

    def record(self, got: int, waited_s: float) -> None:
        """So many bytes came after so long, 0 for none. Raises TooSlow."""
        self._waited_s += waited_s
        self._got += got
        if not got and waited_s >= self._timeout_s:
            raise BodyTooSlow(f"nothing came for {self._timeout_s:g} s")
        if self._rate and self._waited_s >= self._window_s:
            if self._got < self._rate * self._window_s:
                raise BodyTooSlow(
                    f"fewer than {self._rate} bytes a second came for "
                    f"{self._window_s:g} s"
                )
            self._waited_s, self._got = 0.0, 0


class TimedSocket:
    """What gunicorn reads a connection from; while a body is expected, ``sock`` has a
    timeout. One thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._pace: BodyTimeouts | None = None
        self._ask: Callable[[], None] | None = None
        self._asked_at = 0.0
        self.received = 0  # bytes of bodies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def stop_reading(self) -> None:
        """All that may be read is here already: more of it is the end."""
        self._pace, self._ask = None, None

    def start_body(self, pace: BodyTimeouts) -> None:
        """From now on a body may come at this pace."""
        self._pace, self._ask = pace, None

    def while_waiting(self, ask: Callable[[], None]) -> None:
        """Call ``ask`` again and again while one waits for the body; what it raises
        ends the waiting."""
        self._ask = ask

    def recv(self, size: int) -> bytes:
        """Some bytes, none at the end. Raises TooSlow, OSError."""
        size = min(size, BLOCK_SIZE)
        if self._pace is None:
            return b""
        waited_s = 0.0
        while True:
            try:
                data = os.read(
                    self._sock.fileno(), size
                )  # past the socket's timeout, which costs a poll(2) each time
            except BlockingIOError:
                waited_s += self._await_body(self._pace)
                continue
            self._pace.record(len(data), waited_s)
            self.received += len(data)
            return data

    def _await_body(self, pace: BodyTimeouts) -> float:
        """Wait until more comes; for how many seconds that was since the last ones were
        counted."""
        begun = time.monotonic()
        if (
            self._ask is not None and begun - self._asked_at > TURN_S
        ):  # each wait may be short
            self._asked_at = begun
            self._ask()
        while not self._poll(pace.next_wait_s()):
            pace.record(0, time.monotonic() - begun)
            begun = time.monotonic()
        return time.monotonic() - begun

    def _poll(self, patience_s: float) -> bool:
        """Whether something comes in time."""
        poll, deadline = select.poll(), time.monotonic() + patience_s
        poll.register(self._sock, select.POLLIN)
        while (
            self._ask is not None
            and (patience_s := deadline - time.monotonic()) > TURN_S
        ):
            if poll.poll(TURN_S * 1000):
                return True
            self._ask()
        return bool(poll.poll(max(0.0, patience_s) * 1000 + 1))
