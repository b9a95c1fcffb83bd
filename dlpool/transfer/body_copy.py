"""Copy the body of a response from its connection to the part file.

There are two ways. The buffered copy reads into a buffer and writes the buffer. It
works for every body and every output. The spliced copy moves the bytes through a pipe
(``pipe``), so that they never enter this process. It is used for a body without TLS,
transfer coding and content coding, while the body arrives fast.
"""

from __future__ import annotations

from contextlib import suppress

from dlpool import threads
from dlpool.transfer.http.client import HttpClient
from dlpool.transfer.http.limits import RateLimits
from dlpool.transfer.http.source import Reply
from dlpool.transfer.pipe import CAPACITY, Pipe
from dlpool.transfer.target.protocol import RangeWriter

# bytes; allocated once, because each new buffer of that size causes page faults
BUFFER = 256 * 1024
LEAST_SPLICE = 2 * BUFFER  # bytes; fewer are read into the buffer
# descriptors of a pipe, and those left for new connections and part files
_DESCRIPTORS = 2 + 64


class BodyCopy:
    """The block of a body that one connection worker has received but not yet written.

    ``receive`` replaces the block; ``write`` writes it, or the beginning of it.
    """

    def __init__(self, client: HttpClient, rate: RateLimits) -> None:
        self._client = client
        self._rate = rate
        self._buffer = memoryview(b"")
        self._pipe: Pipe | None = None
        # a larger chunk_size asks for larger writes than a pipe allows
        self._may_splice = client.min_read_bytes <= CAPACITY
        self._is_fast = False  # the latest block was received without delay
        self._is_in_pipe = False  # where the block is

    def receive(self, reply: Reply, most: int) -> int:
        """Receive the next block of at most ``most`` bytes; return its size.

        The result is 0 at the end of the body. The size is limited by the rate limits,
        too. Raises the errors of ``Reply.read``.
        """
        if self._is_fast and self._may_splice and reply.can_splice:
            size = self._rate.max_read(min(most, CAPACITY))
            pipe = self._empty_pipe() if size >= LEAST_SPLICE else None
            if pipe is not None and (moved := reply.splice(pipe, size)):
                return self._received(moved, is_in_pipe=True)
        view = self._view(most)
        return self._received(reply.read(view), is_in_pipe=False)

    def write(self, writer: RangeWriter, position: int, size: int) -> None:
        """Write the first ``size`` bytes of the block to ``position`` in the file.

        Raises LocalFault.
        """
        if not self._is_in_pipe:
            writer.write(position, self._buffer[:size])
            return
        assert self._pipe is not None
        end = position + size
        position += writer.splice(position, self._pipe, size)
        while position < end:  # the output does not support splice(2)
            self._may_splice = False
            data = self._pipe.read(end - position)
            writer.write(position, memoryview(data))
            position += len(data)

    def skip(self, reply: Reply, size: int) -> int:
        """Receive at most ``size`` bytes that are not needed; return their number."""
        return reply.read(self._view(size))

    def close(self) -> None:
        """Close the pipe."""
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()

    def _received(self, size: int, *, is_in_pipe: bool) -> int:
        self._is_in_pipe = is_in_pipe
        self._is_fast = size >= self._client.min_read_bytes
        return size

    def _view(self, most: int) -> memoryview:
        """Return a buffer for one read, limited by ``most`` and the rate limits."""
        size = min(most, self._rate.max_read(max(BUFFER, self._client.min_read_bytes)))
        if len(self._buffer) < size:
            self._buffer = memoryview(bytearray(size))
        return self._buffer[:size]

    def _empty_pipe(self) -> Pipe | None:
        """Return an empty pipe, or None if none can be created."""
        if self._pipe is not None and self._pipe.held:
            self.close()  # the rest of a block whose end was stolen
        if self._pipe is None:
            with suppress(OSError):
                if threads.has_free_descriptors(_DESCRIPTORS):
                    self._pipe = Pipe()
            self._may_splice = self._pipe is not None
        return self._pipe
