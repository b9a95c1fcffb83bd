"""Receive a small file completely before its bytes are written.

A small file that arrives without delay needs one write, and no checkpoint. If anything
else happens, the received bytes are handed to the connection worker, which continues
as with any other file.
"""

from __future__ import annotations

import threading
from dataclasses import replace

from dlpool.errors import DlpoolError
from dlpool.transfer.chunks import Chunk
from dlpool.transfer.context import TransferContext
from dlpool.transfer.http.source import Reply
from dlpool.transfer.planning import ProbeResult
from dlpool.transfer.target.protocol import RangeWriter

MAX_BYTES = 256 * 1024  # a larger body is written while it arrives
PATIENCE_S = 0.25  # a body that takes longer is written while it arrives
_local = threading.local()  # its attribute ``buffer``: the buffer of the thread


class ReplayedReply(Reply):
    """A reply that first returns the bytes that were already read from another reply.

    Used by one thread.
    """

    can_splice = False

    def __init__(self, reply: Reply, received: memoryview) -> None:
        """Wrap ``reply``, from which ``received`` was already read."""
        self.status, self.headers, self.url = reply.status, reply.headers, reply.url
        self._reply = reply
        self._received = bytes(received)

    def read(self, view: memoryview) -> int:
        """Read bytes into ``view`` and return their number, as ``Reply.read`` does."""
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
    """The body of the probe's response, if it may be the complete small file.

    The thread of the connection worker uses the object. ``probed``: the result of the
    probe; its reply returns the complete body, even after ``receive`` returned False.
    """

    def __init__(self, context: TransferContext, probed: ProbeResult) -> None:
        self.probed = probed
        self._context = context
        self._data = memoryview(b"")

    def is_of(self, chunk: Chunk) -> bool:
        """Return whether ``chunk`` is a complete file that ``receive`` may fetch."""
        answer = self.probed.answer
        return (
            chunk.start == chunk.position == answer.start == 0
            and 0 < chunk.end <= MAX_BYTES
            and chunk.end == answer.length == answer.resource.size
            and not self._context.rate.is_limited
        )

    def receive(self) -> bool:
        """Receive all bytes of the file; return whether they are received.

        Returns False if they do not arrive within ``PATIENCE_S`` seconds, or if a read
        fails. Then the reply of ``probed`` first returns the received bytes; after
        them, it raises the error of a failed read again.
        """
        reply, size = self.probed.reply, self.probed.answer.length or 0
        view, filled, clock = _buffer()[:size], 0, self._context.clock
        until = clock() + PATIENCE_S
        try:
            while filled < size and (count := reply.read(view[filled:])):
                filled += count
                if filled < size and clock() > until:
                    break
        except DlpoolError:
            pass  # the reply raises it again
        self._data = view[:filled]
        if filled < size:
            self.probed = replace(self.probed, reply=ReplayedReply(reply, self._data))
        return filled == size

    def write(self, writer: RangeWriter, chunk: Chunk) -> None:
        """Write the received file.

        Raises LocalFault, or the error that cancelled the download.
        """
        context, written = self._context, 0
        context.scheduler.begin_write(chunk, len(self._data))
        try:
            writer.write(0, self._data)
            written = len(self._data)
        finally:
            context.scheduler.commit_write(chunk, written)
        context.evidence.begin(0).end = written


def _buffer() -> memoryview:
    """Return the buffer of the calling thread; its memory is allocated once."""
    if not hasattr(_local, "buffer"):
        _local.buffer = memoryview(bytearray(MAX_BYTES))
    buffer: memoryview = _local.buffer
    return buffer
