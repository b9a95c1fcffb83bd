"""The frame channel: one end of the socket pair between supervisor and worker."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from dlpool.service.wire.frames import MAX_FRAME, Frame, decode, encode


class FrameChannel:
    """Sends and receives frames on a ``SOCK_SEQPACKET`` socket; see unix(7).

    Sending is thread-safe: the socket sends each frame atomically.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[FrameChannel, socket.socket]:
        """Return the supervisor's channel and the socket for the worker.

        The channel never blocks.
        """
        supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor.setblocking(False)
        return cls(supervisor), worker

    @classmethod
    def of_worker(
        cls, sock: socket.socket, *, receive_s: float, send_s: float
    ) -> FrameChannel:
        """Return the worker's channel. Its calls block for ``receive_s`` or ``send_s``
        seconds at most.

        The kernel applies the timeouts, so that no call needs a poll(2) before it.
        """
        sock.setblocking(True)
        for option, seconds in (
            (socket.SO_RCVTIMEO, receive_s),
            (socket.SO_SNDTIMEO, send_s),
        ):
            sock.setsockopt(
                socket.SOL_SOCKET,
                option,
                struct.pack("@ll", int(seconds), round(seconds % 1 * 1e6)),
            )
        return cls(sock)

    def fileno(self) -> int:
        """Return the file descriptor, for selectors."""
        return self.socket.fileno()

    def send(self, frame: Frame) -> bool:
        """Send a frame. Return False if it was not sent.

        A frame is not sent if the other end is closed, or if its process does not read.
        """
        return self.send_encoded(encode(frame))

    def send_encoded(self, data: bytes) -> bool:
        """Send an encoded frame. Return False if it was not sent."""
        try:
            self.socket.send(data)
        except OSError:
            # BlockingIOError, TimeoutError, BrokenPipeError, ConnectionResetError
            return False
        return True

    def receive(self) -> Frame | None:
        """Return the next frame, or None if the other end is closed.

        Raises BlockingIOError if no frame has arrived. One connection reset is ignored:
        the kernel reports it before the last data, which may be the result of a job.
        """
        for _ in range(2):
            with suppress(ConnectionResetError):
                data = self.socket.recv(MAX_FRAME + 1)
                return decode(data) if data else None
        return None

    def close(self) -> None:
        """Close this end. After that, ``receive`` returns None at the other end."""
        self.socket.close()
