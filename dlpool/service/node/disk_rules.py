"""What a supervisor and its workers know of disks alike: how much stays free, and
whether one can be written to."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from dlpool import disk
from dlpool.disk import Space
from dlpool.transfer.space_rules import SpaceRules

GIB = 1 << 30
DEFAULT_PART = 20  # a twentieth of a file system below 20 GiB stays free by default
STREAM_LIMIT = (
    10 * GIB
)  # bytes at which a body of unknown length stops, without max_file_size
PROBE = 256 * 1024  # bytes: what a full disk has no room for


def least_free(size: int, min_free: int | None) -> int:
    """Return how many bytes of a file system of ``size`` bytes stay free, with this
    setting."""
    return min(GIB, size // DEFAULT_PART) if min_free is None else min_free


class NodeSpaceRules(SpaceRules):
    """What jobs of a node leave to each other. ``learn`` by one thread, all else by
    any.

    ``min_free`` is the setting. What running jobs will take is known from the
    supervisor, by device number.
    """

    is_monitored = True
    stream_limit = STREAM_LIMIT

    def __init__(self, min_free: int | None) -> None:
        self._min_free = min_free
        self._taken: Mapping[int, int] = {}

    def __repr__(self) -> str:
        return f"<NodeSpaceRules {self._min_free} free, taken: {self._taken}>"

    def update(self, min_free: int | None, taken: Mapping[int, int]) -> None:
        """Use these figures from now on."""
        self._min_free, self._taken = min_free, taken

    def reserved_bytes(self, space: Space) -> int:
        """Return how many bytes of a file system stay free for others."""
        return least_free(space.size, self._min_free)

    def committed_bytes(self, device: int) -> int:
        """Return how many free bytes of a file system, by its device number, running
        downloads will take."""
        return self._taken.get(device, 0)


def can_write(folder: str | Path) -> bool:
    """Return whether a small file in ``folder`` can be written to the disk now; it is
    removed again."""
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
        if error.errno not in disk.CANNOT_CREATE_UNNAMED:
            raise
        name = os.path.join(folder, f".dlpool-{secrets.token_hex(8)}.tmp")
        descriptor = disk.create_exclusive(name, 0o600)
    try:
        disk.write_and_close(descriptor, os.urandom(PROBE), sync=True)
    finally:
        if name:
            disk.remove_quietly(name)
