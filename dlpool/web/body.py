"""Reads request bodies in blocks, with a size limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from dlpool.web.body_slots import BodySlot
from dlpool.web.errors import HttpError

# Bytes per read: each one hands over the interpreter's lock several times. With 120 KiB
# a chunk takes a tenth longer, with 1000 KiB as well.
BLOCK_SIZE = 480 * 1024


class BrokenBody(Exception):
    """The body is incomplete or its framing is invalid."""


class BadFraming(BrokenBody):
    """The chunked framing of a body is invalid (RFC 9112, section 7.1)."""


class BodyTooSlow(Exception):
    """The client sends no bytes for too long, or sends bytes too slowly."""


class SlotRevoked(BodyTooSlow):
    """The slot of a slow body was revoked, because other requests wait."""


class ByteStream(Protocol):
    """The part of a WSGI input stream that RequestBody uses."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` available bytes, ``b""`` at the end."""
        ...


class RequestBody:
    """A request body of at most ``limit`` bytes. Used by one thread.

    ``length`` is the Content-Length, None for a chunked body. ``what`` names the body
    in errors. The constructor raises HttpError (413) if ``length`` exceeds the limit.
    Reads raise HttpError (413) when more than ``limit`` bytes have been received.
    """

    def __init__(
        self,
        stream: ByteStream,
        length: int | None,
        limit: int,
        what: str = "the request",
    ) -> None:
        self._stream = stream
        self.length = length
        self._limit = limit
        self._what = what
        self.size = 0
        self._slot: BodySlot | None = None
        if length is not None and length > limit:
            raise self._too_large()

    def blocks(self, block_size: int = BLOCK_SIZE) -> Iterator[bytes]:
        """Yield the body in blocks of at most ``block_size`` bytes.

        Raises BrokenBody, BodyTooSlow, HttpError (413).
        """
        while self.length is None or self.size < self.length:
            wanted = (
                block_size
                if self.length is None
                else min(block_size, self.length - self.size)
            )
            data = self._stream.read(wanted)
            if not data:
                break
            self.size += len(data)
            if self.size > self._limit:
                raise self._too_large()
            yield data
            self._check()
        if self._slot is not None:
            self._slot.finish_receiving(time.monotonic())
        if self.length is not None and self.size < self.length:
            raise BrokenBody(f"received {self.size} of {self.length} bytes")

    def use_slot(self, slot: BodySlot) -> None:
        """Receive the body in this slot. Reads raise SlotRevoked after the slot has
        been revoked, unless the body is complete."""
        self._slot = slot
        slot.start_receiving(
            lambda: getattr(self._stream, "received", self.size), time.monotonic()
        )
        self.call_while_waiting(self._check)

    def call_while_waiting(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` repeatedly while reads wait, if the server supports it.
        An exception from ``callback`` aborts the read."""
        call_while_waiting = getattr(self._stream, "call_while_waiting", None)

        def check_and_call() -> None:
            self._check()
            callback()

        if call_while_waiting is not None:
            call_while_waiting(check_and_call)

    def read_all(self) -> bytes:
        """Return the complete body. Raises the same errors as ``blocks``."""
        return b"".join(self.blocks())

    def _check(self) -> None:
        """Raise SlotRevoked if the slot was revoked, unless the body is complete."""
        if (
            self._slot is not None
            and self._slot.is_revoked
            and self.size != self.length
        ):
            raise SlotRevoked("other requests wait for its slot")

    def _too_large(self) -> HttpError:
        return HttpError(
            413, "too_large", f"{self._what} is larger than {self._limit} bytes"
        )
