"""Move bytes from a socket to a file through a pipe, without a copy in this process.

splice(2) moves pages from the receive queue of a socket to a pipe, and from there the
file system copies them to the page cache. A pipe of the default size, 64 KiB, takes
more time than recv(2) and write(2); so each ``Pipe`` is enlarged.
"""

from __future__ import annotations

import fcntl
import os
import threading

from dlpool.disk import close_quietly
from dlpool.disk_errors import CANNOT_SPLICE

CAPACITY = 1024 * 1024  # bytes; Linux's default for pipe-max-size, see pipe(7)
# Pipes of one process. All pipes of a user together may have 64 MiB by default
# (pipe-user-pages-soft); then every further pipe of the user gets two pages.
MAX_PIPES = 16

_free = threading.BoundedSemaphore(MAX_PIPES)


class Pipe:
    """A pipe that one thread fills from a socket and empties into a file.

    ``held``: how many bytes the pipe contains.
    """

    def __init__(self) -> None:
        """Open a pipe of ``CAPACITY`` bytes.

        Raises OSError if the process has ``MAX_PIPES`` pipes or no free descriptor, and
        if the system does not allow this user a pipe of that size.
        """
        if not _free.acquire(blocking=False):
            raise OSError(f"{MAX_PIPES} pipes are open")
        self.held = 0
        self._ends: tuple[int, ...] = ()
        try:
            self._ends = os.pipe()
            fcntl.fcntl(self._ends[1], fcntl.F_SETPIPE_SZ, CAPACITY)
        except OSError:
            self.close()
            raise

    def fill(self, sock: int, size: int) -> int:
        """Move at most ``size`` received bytes from a socket into the pipe.

        Returns their number; 0 at the end of the stream. Raises BlockingIOError if the
        pipe is full, or if a non-blocking socket has received nothing. Raises OSError
        as recv(2) does, and EINVAL for a socket that does not support splice(2).
        """
        count = os.splice(sock, self._ends[1], size, flags=os.SPLICE_F_NONBLOCK)
        self.held += count
        return count

    def empty(self, file: int, position: int, size: int) -> int:
        """Move ``size`` bytes from the pipe to ``position`` of a file.

        Returns how many bytes were moved; fewer than ``size`` if the file system does
        not support splice(2). Raises OSError as write(2) does.
        """
        moved = 0
        try:
            while moved < size:
                count = os.splice(
                    self._ends[0], file, size - moved, offset_dst=position + moved
                )
                if not count:
                    break
                moved += count
        except OSError as error:
            if error.errno not in CANNOT_SPLICE:
                raise
        self.held -= moved
        return moved

    def read(self, size: int) -> bytes:
        """Take at most ``size`` bytes out of the pipe, and return them."""
        data = os.read(self._ends[0], min(size, self.held))
        self.held -= len(data)
        return data

    def close(self) -> None:
        """Close the pipe; the bytes in it are lost. Call it once."""
        for end in self._ends:
            close_quietly(end)
        _free.release()
