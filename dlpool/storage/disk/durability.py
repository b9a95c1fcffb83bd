"""Durable writes: with the setting ``enable_atomic_operations``, writes of the backend
wait for the disk."""

from __future__ import annotations

import os
from pathlib import Path

from dlpool import disk
from dlpool.dataclass import dataclass


@dataclass(frozen=True)
class Durability:
    """Writes files, and waits for the disk if ``is_wanted``.

    The truth value of the object is ``is_wanted``. ``on_unsynced`` is called once in a
    process for each file system that cannot sync a folder.
    """

    is_wanted: bool
    on_unsynced: disk.OnUnsynced | None = None

    def __bool__(self) -> bool:
        return self.is_wanted

    def sync_data(self, descriptor: int) -> None:
        """Make the bytes of an open file durable.

        Raises OSError, even for an earlier write whose error was delayed.
        """
        if self.is_wanted:
            os.fdatasync(descriptor)
        check_close(descriptor)

    def sync_file(self, descriptor: int) -> None:
        """Make the bytes and the metadata of an open file durable.

        Raises OSError like ``sync_data``.
        """
        if self.is_wanted:
            os.fsync(descriptor)
        check_close(descriptor)

    def sync_folder(self, folder: Path | int) -> None:
        """Make the names in a folder durable. Raises OSError."""
        if self.is_wanted:
            disk.sync_folder(folder, on_unsynced=self.on_unsynced)

    def write(self, path: Path, data: bytes) -> None:
        """Replace the content of a file atomically.

        If this raises OSError, the file has either the old or the new content.
        """
        disk.atomic_write(path, data, sync=self.is_wanted, on_unsynced=self.on_unsynced)


NO_SYNC = Durability(False)


def check_close(descriptor: int) -> None:
    """Raise the OSError that close(2) would report for earlier writes.

    A network file system may report a failed write only when a descriptor is closed. So
    this function closes a duplicate of the descriptor. The error is then known while
    the file is still locked and unpublished. The descriptor itself stays open.
    """
    os.close(os.dup(descriptor))
