"""Lingering close of connections whose client may still be sending (RFC 9112, section
9.6).

Closing a socket with unread bytes resets the connection, and the client may lose the
response. One thread therefore reads and discards the bytes of all such connections for
a few seconds.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress

from dlpool.dataclass import dataclass

LINGER_S = 5.0
MAX_DISCARDED = 64 * 1024 * 1024  # bytes of one client
MAX_SOCKETS = 512
_RECV_SIZE = 256 * 1024
_POLL_S = 0.1


@dataclass
class _LingeringSocket:
    sock: socket.socket
    until: float
    discarded: int = 0


class LingeringCloser:
    """Closes sockets after a delay. ``close`` may be called by any thread."""

    def __init__(self) -> None:
        self._new: deque[_LingeringSocket] = deque()
        self._selector = selectors.DefaultSelector()
        self._thread: threading.Thread | None = None

    def close(self, sock: socket.socket) -> None:
        """Shut down the sending side, and close the socket after at most ``LINGER_S``
        seconds. Does not block or raise."""
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
                entry = self._new.popleft()
                self._selector.register(entry.sock, selectors.EVENT_READ, entry)
            if not self._selector.get_map():
                time.sleep(_POLL_S)
                continue
            for key, _ in self._selector.select(_POLL_S):
                self._discard(key.data)
            now = time.monotonic()
            for key in list(self._selector.get_map().values()):
                if now >= key.data.until:
                    self._close(key.data)

    def _discard(self, entry: _LingeringSocket) -> None:
        try:
            data = entry.sock.recv(_RECV_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        entry.discarded += len(data)
        if not data or entry.discarded > MAX_DISCARDED:
            self._close(entry)

    def _close(self, entry: _LingeringSocket) -> None:
        self._selector.unregister(entry.sock)
        with suppress(OSError):
            entry.sock.close()
