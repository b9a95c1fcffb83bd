"""Free space of file systems, and its reservation. Thread-safe."""

from __future__ import annotations

import os
from dataclasses import field

from dlpool.dataclass import dataclass
from dlpool.disk import Name
from dlpool.disk_errors import fault_of
from dlpool.errors import NoSpace
from dlpool.syscalls import fallocate


@dataclass(frozen=True)
class Space:
    """Size and free space of a file system for this user, in bytes.

    ``root_reserve``: free bytes that only root may use. ``files``: how many files this
    user may create; None: unlimited or unknown.
    """

    size: int
    free: int
    root_reserve: int = field(default=0, compare=False)
    files: int | None = field(default=None, compare=False)

    @property
    def usable(self) -> int:
        """The bytes that this user could write to the empty file system."""
        return self.size - self.root_reserve


def space_of(where: Name | int) -> Space | None:
    """Return the space of the file system of a path or descriptor. Raises OSError.

    Returns None if the space is unknown: ramfs and some file systems in user space
    report no blocks. ``files`` is None on btrfs and FAT, which report no inodes.
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
    """Return the space of the file system of a path or descriptor.

    Returns None if the space is unknown or an error occurs. Callers treat None as no
    limit: on a full file system the write itself will fail.
    """
    try:
        return space_of(where)
    except OSError:
        return None


def reserve(
    descriptor: int, offset: int, size: int, *, keep_size: bool = False
) -> bool:
    """Reserve disk space for ``size`` bytes at ``offset``, by ``fallocate``.

    ``keep_size``: do not extend the file. Raises OSError if the disk is full. Returns
    False if the reservation fails for another reason.
    """
    try:
        fallocate(descriptor, offset, size, keep_size=keep_size)
    except OSError as error:
        if fault_of(error).raised is NoSpace:
            raise
        return False
    return True
