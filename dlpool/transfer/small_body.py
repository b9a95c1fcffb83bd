"""Receive a small file completely before its bytes are written.

A small file that arrives without delay needs one write, and no checkpoint. If anything
else happens, the received bytes are handed to the connection worker, which continues
as with any other file.
"""

from __future__ import annotations

import threading

from dlpool.errors import DlpoolError
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.answer import Answer
from dlpool.transfer.http.source import Reply

MAX_BYTES = 256 * 1024  # a larger body is written while it arrives
PATIENCE_S = 0.25  # a body that takes longer is written while it arrives
_local = threading.local()  # its attribute ``buffer``: the buffer of the thread


class ReplayedReply(Reply):
    """A reply of which a part was read before: first returns this part again.

    Used by one thread.
    """

    can_splice = False

    def __init__(self, reply: Reply, received: memoryview) -> None:
        """``received``: the bytes that were read from ``reply``."""
        self.status, self.headers, self.url = reply.status, reply.headers, reply.url
        self._reply = reply
        self._received = bytes(received)

    def read(self, view: memoryview) -> int:
        """Fill ``view`` and return the number of bytes, as ``Reply.read`` does."""
        if not self._received:
            return self._reply.read(view)
        size = min(len(view), len(self._received))
        view[:size] = self._received[:size]
        self._received = self._received[size:]
        return size

    def close(self) -> None:
        """Close the reply."""
        self._reply.close()


class SmallBody:
    """The body of a response that may be the complete small file.

    ``reply``: the response, to be read on if ``receive`` returns None. The thread of
    the connection worker uses the object.
    """

    def __init__(self, context: TransferContext, reply: Reply, answer: Answer) -> None:
        """``answer``: what ``reply`` contains."""
        self.reply = reply
        self._context = context
        self._answer = answer

    def is_of(self, chunk: Chunk | None) -> bool:
        """Return whether ``chunk`` is the file, and ``receive`` can fetch it."""
        return (
            chunk is not None
            and chunk.start == chunk.position == self._answer.start == 0
            and 0 < chunk.end <= MAX_BYTES
            and chunk.end == self._answer.length == self._answer.resource.size
            and not self._context.rate.is_limited
        )

    def receive(self, size: int) -> memoryview | None:
        """Receive all ``size`` bytes, and return them; the next call reuses the memory.

        Returns None if the bytes do not arrive within ``PATIENCE_S`` seconds, or if a
        read fails. Then ``reply`` returns the bytes received so far again, and after
        them raises the same error.
        """
        view, filled, clock = _buffer()[:size], 0, self._context.clock
        until = clock() + PATIENCE_S
        try:
            while filled < size and (count := self.reply.read(view[filled:])):
                filled += count
                if filled < size and clock() > until:
                    break
        except DlpoolError:
            pass  # the reply raises it again
        if filled == size:
            return view
        self.reply = ReplayedReply(self.reply, view[:filled])
        return None


def _buffer() -> memoryview:
    """Return the buffer of the calling thread; its memory is allocated once."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(MAX_BYTES))
    buffer: memoryview = _local.buffer
    return buffer
