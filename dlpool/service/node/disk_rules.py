"""Rules that supervisor and workers share: the space that stays free on a disk, and
whether a disk can be written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dlpool import disk, disk_errors
from dlpool.freespace import Space
from dlpool.transfer.space_rules import SpaceRules

GIB = 1 << 30
DEFAULT_SHARE = 20  # by default a twentieth of a file system below 20 GiB stays free
# bytes after which a body of unknown length is stopped, without max_file_size
STREAM_LIMIT = 10 * GIB
PROBE_SIZE = 256 * 1024  # bytes: too many for a full disk


def least_free(size: int, min_free: int | None) -> int:
    """Return how many bytes of a file system of ``size`` bytes must stay free.

    ``min_free`` is the setting, in bytes. For None the result is 1 GiB, but at most a
    twentieth of ``size``.
    """
    return min(GIB, size // DEFAULT_SHARE) if min_free is None else min_free


class NodeSpaceRules(SpaceRules):
    """Rules for the disk space that a job must leave free for other jobs of the node.

    One thread calls ``update``; any thread may call the other methods. ``min_free`` is
    the setting. ``committed``: the bytes that running jobs will still write, by device
    number, as the supervisor reports them.
    """

    is_monitored = True
    stream_limit = STREAM_LIMIT

    def __init__(self, min_free: int | None) -> None:
        self._min_free = min_free
        self._committed: Mapping[int, int] = {}

    def __repr__(self) -> str:
        return f"<NodeSpaceRules {self._min_free} free, committed: {self._committed}>"

    def update(self, min_free: int | None, committed: Mapping[int, int]) -> None:
        """Use these values from now on."""
        self._min_free, self._committed = min_free, committed

    def reserved_bytes(self, space: Space) -> int:
        """Return how many bytes of a file system must stay free."""
        return least_free(space.size, self._min_free)

    def committed_bytes(self, device: int) -> int:
        """Return the number of bytes that running downloads will still write to a file
        system."""
        return self._committed.get(device, 0)


def can_write(folder: str | Path) -> bool:
    """Write a small file to the disk in ``folder`` and remove it; return whether the
    write succeeded."""
    try:
        _write(os.fspath(folder))
    except OSError:
        return False
    return True


def _write(folder: str) -> None:
    try:
        name, descriptor = (
            "",
            os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600),
        )
    except OSError as error:
        if error.errno not in disk_errors.CANNOT_CREATE_UNNAMED:
            raise
        name = os.path.join(folder, f".dlpool-{secrets.token_hex(8)}.tmp")
        descriptor = disk.create_exclusive(name, 0o600)
    try:
        disk.write_and_close(descriptor, os.urandom(PROBE_SIZE), sync=True)
    finally:
        if name:
            disk.remove_quietly(name)
