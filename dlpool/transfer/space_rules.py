"""How much of its disk a download may take: judged before its first byte, and again
while bytes arrive.

What a server says of a size reserves nothing. Blocks are reserved ahead of a connection
for no more bytes than it has brought already, so that a server which promises much and
sends little keeps nothing from others.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from dlpool import disk
from dlpool.disk import Space, translated
from dlpool.errors import NoRoom, TooLarge
from dlpool.syscalls import MIN_FALLOC_BYTES
from dlpool.transfer.chunks import UNKNOWN_END, Chunk

# bytes that stay free for the state file and the file system's own needs
SPACE_RESERVE = 1024 * 1024
# bytes between two looks at the free space, and most that is reserved ahead
MAX_AHEAD = 64 * 1024 * 1024
MIN_AHEAD = 64 * 1024  # bytes
_BLOCK = 512  # bytes: the unit of st_blocks, see stat(2)
# the part of the spare bytes after which they are looked at again: others write, too
SPARE_PART = 8


class SpaceRules:
    """All of a disk may be taken, as by a download of its own user. Immutable; a
    service has other rules.

    ``is_watched``: whether the free space is looked at while bytes arrive.
    ``stream_limit``: bytes at which a body of unknown length stops, None for no limit.
    """

    is_monitored = False
    stream_limit: int | None = None

    def reserved_bytes(self, space: Space) -> int:  # noqa: ARG002 - of the rules of others
        """Return how many bytes of a file system stay free for others."""
        return 0

    def committed_bytes(self, device: int) -> int:  # noqa: ARG002
        """Return how many free bytes of a file system, by its device number, running
        downloads will take."""
        return 0

    def check(self, descriptor: int, folder: Path, size: int) -> None:
        """Judge a file of ``size`` bytes, of which the open file has some already.

        Raises TooLarge if it can never fit into the file system, NoRoom if it does not
        fit now, LocalFault.
        """
        if size < MIN_FALLOC_BYTES:
            return  # its first write tells as soon
        with translated(f"look at {folder}"):
            status = os.fstat(descriptor)
        needed = max(0, size - status.st_blocks * _BLOCK)
        space = disk.space_or_none(descriptor)
        if not needed or space is None:
            return
        kept = self.reserved_bytes(space)
        if size + SPACE_RESERVE > space.usable - kept:
            raise TooLarge(
                f"a file of {size} bytes can never fit into {folder}, which holds "
                f"{space.usable} bytes{_less(kept)}"
            )
        kept += self.committed_bytes(status.st_dev)
        if needed + SPACE_RESERVE > space.free - kept:
            raise NoRoom(
                f"{folder} has {space.free} bytes free{_less(kept)}, "
                f"{needed + SPACE_RESERVE} are needed"
            )


ENTIRE_DISK = SpaceRules()


class Reserver(Protocol):
    """What ``WriteBudget`` asks of the writer of a part file."""

    def space(self) -> Space | None:
        """Return the space of its file system, None where it is unknown."""
        ...

    def reserve(self, position: int, size: int) -> bool:
        """Reserve blocks without a change of the file's length; return whether that was
        possible."""
        ...


class WriteBudget:
    """How many bytes one connection may write before the disk is looked at again. Used
    by the connection's thread.

    ``reserved_to``: the end of the last blocks that were reserved for it; others read
    it.
    """

    def __init__(self, rules: SpaceRules, *, reserves: bool) -> None:
        self.reserved_to = 0
        self._rules = rules
        self._reserves = reserves
        self._brought = 0
        self._budget = MIN_FALLOC_BYTES

    def spend(self, writer: Reserver, chunk: Chunk, size: int) -> None:
        """Look whether ``size`` more bytes fit, if it is time to. Raises TooLarge,
        NoRoom."""
        if size > self._budget:
            self._budget = max(size, self._look(writer, chunk, size))
        self._budget -= size
        self._brought += size

    def _look(self, writer: Reserver, chunk: Chunk, size: int) -> int:
        step = min(max(self._brought, MIN_FALLOC_BYTES), MAX_AHEAD)
        if self._rules.is_monitored and (space := writer.space()) is not None:
            step = min(
                step, max(self._spare(space, chunk, size) // SPARE_PART, MIN_AHEAD)
            )
        ahead = min(step, self._brought, chunk.end - chunk.position)
        if self._reserves and chunk.end != UNKNOWN_END and ahead >= MIN_FALLOC_BYTES:
            if writer.reserve(chunk.position, ahead):
                self.reserved_to = chunk.position + ahead
            else:
                self._reserves = False
        return step

    def _spare(self, space: Space, chunk: Chunk, size: int) -> int:
        kept = self._rules.reserved_bytes(space)
        spare = space.free - kept - SPACE_RESERVE
        if size <= spare:
            return spare
        if (
            chunk.end == UNKNOWN_END
            and chunk.position + size + SPACE_RESERVE > space.usable - kept
        ):
            raise TooLarge(
                f"the file does not end before the disk is full, which holds "
                f"{space.usable} bytes{_less(kept)}"
            )
        raise NoRoom(f"the disk is full: {space.free} bytes are free{_less(kept)}")


def _less(kept: int) -> str:
    return f", of which {kept} are kept for others" if kept else ""
