"""One end of the private socket pair between supervisor and worker: whole frames or
nothing."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

from dlpool.service.wire.frames import MAX_FRAME, Frame, decode, encode


class FrameChannel:
    """Sends and receives frames. Sending is thread-safe: the kernel keeps a frame of
    ``SOCK_SEQPACKET`` whole.

    See unix(7).
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[FrameChannel, socket.socket]:
        """The supervisor's end, which never blocks, and the socket for the worker."""
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mine.setblocking(False)
        return cls(mine), theirs

    @classmethod
    def of_worker(
        cls, sock: socket.socket, *, receive_s: float, send_s: float
    ) -> FrameChannel:
        """The worker's end: it waits, so long at most, and in the kernel (no poll
        before each call)."""
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
        """For selectors."""
        return self.socket.fileno()

    def send(self, frame: Frame) -> bool:
        """Send it; False if the other end is gone or does not read (a stopped process):
        nothing was sent then."""
        return self.send_encoded(encode(frame))

    def send_encoded(self, data: bytes) -> bool:
        """The same for a frame that is encoded already."""
        try:
            self.socket.send(data)
        except (
            OSError
        ):  # BlockingIOError, TimeoutError, BrokenPipeError, ConnectionResetError
            return False
        return True

    def receive(self) -> Frame | None:
        """The next frame; None at the end. Raises BlockingIOError if there is none now.

        A reset is passed over: it comes before the last data, which may be an outcome.
        """
        for _ in range(2):
            with suppress(ConnectionResetError):
                data = self.socket.recv(MAX_FRAME + 1)
                return decode(data) if data else None
        return None

    def close(self) -> None:
        """Close this end; the other one reads its end."""
        self.socket.close()
