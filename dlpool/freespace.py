"""Free space of file systems, and its reservation. Thread-safe."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from dlpool.disk import Name, fault_of
from dlpool.errors import NoSpace
from dlpool.syscalls import fallocate


@dataclass(frozen=True)
class Space:
    """The size of a file system, and how much of it this user may still write. In
    bytes.

    ``kept``: free bytes that are reserved for root. ``files``: how many files this user
    could make; None: unlimited.
    """

    size: int
    free: int
    root_reserve: int = field(default=0, compare=False)
    files: int | None = field(default=None, compare=False)

    @property
    def usable(self) -> int:
        """How much this user could write if the file system were empty."""
        return self.size - self.root_reserve


def space_of(where: Name | int) -> Space | None:
    """Return the space of the file system of a path or descriptor; None where it is
    unknown. Raises OSError.

    No blocks are reported by ramfs and some in user space, which are not full; no
    inodes by btrfs and FAT.
    """
    status = os.statvfs(where)
    if status.f_blocks == 0:
        return None
    unit, files = status.f_frsize, status.f_favail if status.f_files else None
    return Space(
        status.f_blocks * unit,
        status.f_bavail * unit,
        (status.f_bfree - status.f_bavail) * unit,
        files,
    )


def space_or_none(where: Name | int) -> Space | None:
    """Return the space of the file system of a path or descriptor; None where it is
    unknown. Raises nothing.

    Callers treat None as no limit: on a full file system the write fails.
    """
    try:
        return space_of(where)
    except OSError:
        return None


def reserve(
    descriptor: int, offset: int, size: int, *, keep_size: bool = False
) -> bool:
    """Reserve blocks, see ``fallocate``; False where the file system cannot. Raises
    OSError if the disk is full."""
    try:
        fallocate(descriptor, offset, size, keep_size=keep_size)
    except OSError as error:
        if fault_of(error).raised is NoSpace:
            raise
        return False
    return True
