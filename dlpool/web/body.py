"""The body of a request: read as it comes, counted, bounded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from dlpool.web.body_slots import BodySlot
from dlpool.web.errors import HttpError

BLOCK_SIZE = (
    120 * 1024
    # bytes at once: with larger writes the page cache takes larger folios, and more
    # often fresh memory
)


class BrokenBody(Exception):
    """The body ends before its end, or its framing is wrong."""


class BadFraming(BrokenBody):
    """The chunks of a body are not framed as RFC 9112, section 7.1, says."""


class BodyTooSlow(Exception):
    """A client sends nothing, or hardly anything."""


class SlotRevoked(BodyTooSlow):
    """A body comes slowly, and others wait for its place."""


class ByteStream(Protocol):
    """The part of a WSGI input that is used here."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes: what is there, none at the end."""
        ...


class RequestBody:
    """A body of at most ``limit`` bytes; ``length`` is what the client says, None for a
    chunked one.

    Raises Refusal (413) at once if it says more, and as soon as more comes. Used by one
    thread.
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
        self._place: BodySlot | None = None
        if length is not None and length > limit:
            raise self._too_large()

    def blocks(self, most: int = BLOCK_SIZE) -> Iterator[bytes]:
        """All of it, at ``most`` so many bytes at once.

        Raises BrokenBody if fewer bytes come than the client said, TooSlow (Yielded),
        Refusal.
        """
        while self.length is None or self.size < self.length:
            want = most if self.length is None else min(most, self.length - self.size)
            data = self._stream.read(want)
            if not data:
                break
            self.size += len(data)
            if self.size > self._limit:
                raise self._too_large()
            yield data
            self._check()
        if self._place is not None:
            self._place.finish_receiving(time.monotonic())
        if self.length is not None and self.size < self.length:
            raise BrokenBody(f"{self.size} of {self.length} bytes came")

    def use_slot(self, place: BodySlot) -> None:
        """It is received on this place, until that has to be given up."""
        self._place = place
        place.start_receiving(
            lambda: getattr(self._stream, "received", self.size), time.monotonic()
        )
        self.while_waiting(self._check)

    def while_waiting(self, ask: Callable[[], None]) -> None:
        """Call ``ask`` again and again while little comes, where the server can do
        that; what it raises ends it."""
        begin = getattr(self._stream, "while_waiting", None)

        def ask_all() -> None:
            self._check()
            ask()

        if begin is not None:
            begin(ask_all)

    def read_all(self) -> bytes:
        """All of it at once."""
        return b"".join(self.blocks())

    def _check(self) -> None:
        """Raise Yielded if its place is wanted, unless it is here."""
        if (
            self._place is not None
            and self._place.is_revoked
            and self.size != self.length
        ):
            raise SlotRevoked("others wait for its place")

    def _too_large(self) -> HttpError:
        return HttpError(
            413, "too_large", f"{self._what} is larger than {self._limit} bytes"
        )
