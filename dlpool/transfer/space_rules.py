"""Limit how much disk space a download may take, before and while bytes arrive.

A connection reserves blocks ahead of its position, but never more bytes ahead than it
has received so far. So a server that announces much and sends little takes no space
from other downloads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from dlpool import freespace
from dlpool.disk_errors import translated
from dlpool.errors import NoRoom, TooLarge
from dlpool.freespace import Space
from dlpool.syscalls import MIN_FALLOC_BYTES
from dlpool.transfer.chunks import UNKNOWN_END, Chunk

# bytes that stay free for the state file and the metadata of the file system
SPACE_RESERVE = 1024 * 1024
# maximum bytes between two checks of the free space, and maximum reserved ahead
MAX_AHEAD = 64 * 1024 * 1024
MIN_AHEAD = 64 * 1024  # minimum bytes between two checks of the free space
_BLOCK = 512  # bytes: the unit of st_blocks, see stat(2)
# The free space is checked again after 1/SPARE_PART of the spare bytes, because other
# processes write, too.
SPARE_PART = 8


class SpaceRules:
    """The rules of a user's own download, which may fill the disk.

    Immutable. A service uses a subclass. ``is_monitored``: whether to check the free
    space while bytes arrive. ``stream_limit``: largest accepted body of unknown length
    in bytes, None for no limit.
    """

    is_monitored = False
    stream_limit: int | None = None

    def reserved_bytes(self, space: Space) -> int:  # noqa: ARG002 - a service uses it
        """Return how many bytes of a file system must stay free."""
        return 0

    def committed_bytes(self, device: int) -> int:  # noqa: ARG002
        """Return how many of the free bytes the running downloads will still take.

        ``device``: the device number of the file system.
        """
        return 0

    def check(self, descriptor: int, folder: Path, size: int) -> None:
        """Check that a file of ``size`` bytes fits; accept every small file.

        ``descriptor``: the descriptor of the open file, which may already have some
        blocks. ``folder``: its folder, for messages. Raises TooLarge if the file can
        never fit into the file system, NoRoom if it does not fit now, LocalFault.
        """
        if size < MIN_FALLOC_BYTES:
            return  # its first write fails as early
        with translated(f"access {folder}"):
            status = os.fstat(descriptor)
        needed = max(0, size - status.st_blocks * _BLOCK)
        space = freespace.space_or_none(descriptor)
        if not needed or space is None:
            return
        reserved = self.reserved_bytes(space)
        if size + SPACE_RESERVE > space.usable - reserved:
            raise TooLarge(
                f"a file of {size} bytes can never fit into {folder}, which holds "
                f"{space.usable} bytes{_reserve_note(reserved)}"
            )
        reserved += self.committed_bytes(status.st_dev)
        if needed + SPACE_RESERVE > space.free - reserved:
            raise NoRoom(
                f"{folder} has {space.free} bytes free{_reserve_note(reserved)}, "
                f"{needed + SPACE_RESERVE} are needed"
            )


ENTIRE_DISK = SpaceRules()


class BlockReserver(Protocol):
    """The methods of a writer that ``WriteBudget`` needs to reserve disk space."""

    def space(self) -> Space | None:
        """Return the space of the file system, None if it is unknown."""
        ...

    def reserve(self, position: int, size: int) -> bool:
        """Reserve blocks without changing the file's length.

        Return whether that was possible.
        """
        ...


class WriteBudget:
    """The bytes that one connection may write before the free space is checked again.

    The connection's thread uses it; other threads read ``reserved_to``.
    ``reserved_to``: the position in the file up to which the connection last reserved
    blocks. ``reserves``: whether to reserve blocks.
    """

    def __init__(self, rules: SpaceRules, *, reserves: bool) -> None:
        self.reserved_to = 0
        self._rules = rules
        self._reserves = reserves
        self._received = 0
        self._budget = MIN_FALLOC_BYTES

    def spend(self, writer: BlockReserver, chunk: Chunk, size: int) -> None:
        """Take ``size`` bytes from the budget.

        If fewer bytes are left, first renews the budget. This checks the free space if
        ``is_monitored`` is set in the rules. Raises TooLarge, NoRoom.
        """
        if size > self._budget:
            self._budget = max(size, self._renew(writer, chunk, size))
        self._budget -= size
        self._received += size

    def _renew(self, writer: BlockReserver, chunk: Chunk, size: int) -> int:
        step = min(max(self._received, MIN_FALLOC_BYTES), MAX_AHEAD)
        if self._rules.is_monitored and (space := writer.space()) is not None:
            step = min(
                step, max(self._spare(space, chunk, size) // SPARE_PART, MIN_AHEAD)
            )
        ahead = min(step, self._received, chunk.end - chunk.position)
        if self._reserves and chunk.end != UNKNOWN_END and ahead >= MIN_FALLOC_BYTES:
            if writer.reserve(chunk.position, ahead):
                self.reserved_to = chunk.position + ahead
            else:
                self._reserves = False
        return step

    def _spare(self, space: Space, chunk: Chunk, size: int) -> int:
        reserved = self._rules.reserved_bytes(space)
        spare = space.free - reserved - SPACE_RESERVE
        if size <= spare:
            return spare
        if (
            chunk.end == UNKNOWN_END
            and chunk.position + size + SPACE_RESERVE > space.usable - reserved
        ):
            raise TooLarge(
                "the file does not end before the disk is full, which holds "
                f"{space.usable} bytes{_reserve_note(reserved)}"
            )
        raise NoRoom(
            f"the disk is full: {space.free} bytes are free{_reserve_note(reserved)}"
        )


def _reserve_note(reserved: int) -> str:
    return f", of which {reserved} are reserved for others" if reserved else ""
