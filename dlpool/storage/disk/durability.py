"""The durability of the store's writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from dlpool import disk


@dataclass(frozen=True)
class Durability:
    """How durable the store's writes are. Its truth value: whether the store waits
    until they are on the disk.

    ``on_unsynced`` is called once in a process for each file system that cannot sync a
    folder.
    """

    is_wanted: bool
    on_unsynced: disk.OnUnsynced | None = None

    def __bool__(self) -> bool:
        return self.is_wanted

    def sync_data(self, descriptor: int) -> None:
        """Make the bytes of an open file durable. Raises OSError, also for a delayed
        error of an earlier write.

        A network file system may report a failed write only when a descriptor is closed
        (close(2)): so a duplicate is closed here, while the file is still locked and
        unpublished.
        """
        if self.is_wanted:
            os.fdatasync(descriptor)
        os.close(os.dup(descriptor))

    def sync_file(self, descriptor: int) -> None:
        """The same, with the metadata of the file. Raises OSError."""
        if self.is_wanted:
            os.fsync(descriptor)
        os.close(os.dup(descriptor))

    def sync_folder(self, folder: Path | int) -> None:
        """Make the names in a folder durable. Raises OSError."""
        if self.is_wanted:
            disk.sync_folder(folder, on_unsynced=self.on_unsynced)

    def write(self, path: Path, data: bytes) -> None:
        """Replace the content of a file atomically. Raises OSError, and then the old
        content may still be there."""
        disk.atomic_write(path, data, sync=self.is_wanted, on_unsynced=self.on_unsynced)


NO_SYNC = Durability(False)
