"""Connections whose client has its answer and may still be sending (RFC 9112, section
9.6).

A socket that is closed with bytes unread is reset, which may take the answer from the
client. So what comes is read and dropped for a moment, by one thread for all of them.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

LINGER_S = 5.0
MAX_DROPPED = 64 * 1024 * 1024  # bytes of one client
MAX_SOCKETS = 512
_PIECE = 256 * 1024
_TURN_S = 0.1


@dataclass
class _LingeringSocket:
    sock: socket.socket
    until: float
    dropped: int = 0


class LingeringCloser:
    """``close`` by any thread; all else on its own."""

    def __init__(self) -> None:
        self._new: deque[_LingeringSocket] = deque()
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None

    def close(self, sock: socket.socket) -> None:
        """Close it soon. Never blocks, never raises."""
        try:
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()
            return
        if len(self._new) + len(self._selector.get_map() or ()) >= MAX_SOCKETS:
            sock.close()
            return
        self._new.append(_LingeringSocket(sock, time.monotonic() + LINGER_S))
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        """Start the thread; if that fails, close the waiting connections."""
        thread = threading.Thread(target=self._run, name="lingering", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            while self._new:
                self._new.popleft().sock.close()
        else:
            self._thread = thread

    def _run(self) -> None:
        while True:
            while self._new:
                left = self._new.popleft()
                self._selector.register(left.sock, selectors.EVENT_READ, left)
            if not self._selector.get_map():
                time.sleep(_TURN_S)
                continue
            for key, _ in self._selector.select(_TURN_S):
                self._drop(key.data)
            now = time.monotonic()
            for key in list(self._selector.get_map().values()):
                if now >= key.data.until:
                    self._end(key.data)

    def _drop(self, left: _LingeringSocket) -> None:
        try:
            data = left.sock.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        left.dropped += len(data)
        if not data or left.dropped > MAX_DROPPED:
            self._end(left)

    def _end(self, left: _LingeringSocket) -> None:
        self._selector.unregister(left.sock)
        with suppress(OSError):
            left.sock.close()
