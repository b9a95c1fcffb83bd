"""Write to a part file, or read it, on one thread through one descriptor."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from dlpool import disk, freespace
from dlpool.disk_errors import local_fault, translated
from dlpool.errors import LocalFault
from dlpool.freespace import Space
from dlpool.syscalls import start_writeback
from dlpool.transfer.pipe import Pipe

WRITEBACK_BYTES = 8 * 1024 * 1024  # contiguous bytes written between two hints
_CLOSED = -1  # as a descriptor
_UNKNOWN = -1  # as a position


class PartWriter:
    """A descriptor with which one thread writes to a part file, or reads it.

    ``close`` may be called by another thread. ``is_shared``: whether other descriptors
    share the file offset; the writer then does not use it. An offset that is not shared
    must be 0 at first. ``closes``: whether ``close`` closes the descriptor.
    """

    def __init__(
        self,
        descriptor: int,
        path: disk.Name,
        is_shared: bool = False,
        *,
        closes: bool = True,
        writes_back: bool = False,
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._is_shared = is_shared
        self._closes = closes
        self._writes_back = writes_back
        self._position = 0
        # the latest contiguous bytes for which the kernel has got no hint
        self._dirty_from = self._dirty_to = 0
        # held while writing: the number of a closed descriptor may be another file's
        self._lock = threading.Lock()
        self._failure: LocalFault | None = None

    def write(self, position: int, data: memoryview) -> None:
        """Write all of ``data`` at ``position``. Raises LocalFault."""
        if not data:
            return  # the writer may have been closed: the file is complete
        with self._lock:
            try:
                self._write(position, data)
            except OSError as error:
                self._position = _UNKNOWN
                raise local_fault(f"write {self._path}", error) from error
            self._position = position + len(data)
            self._count_dirty(position, len(data))

    def splice(self, position: int, pipe: Pipe, size: int) -> int:
        """Move ``size`` bytes from ``pipe`` to ``position``.

        Returns how many bytes were moved; fewer than ``size`` if the file system does
        not support splice(2). Raises LocalFault.
        """
        with self._lock, translated(f"write {self._path}"):
            moved = pipe.empty(self._descriptor, position, size)
            self._count_dirty(position, moved)
            return moved

    def _count_dirty(self, position: int, size: int) -> None:
        if position != self._dirty_to:
            self._dirty_from = position
        self._dirty_to = position + size
        dirty = self._dirty_to - self._dirty_from
        if self._writes_back and dirty >= WRITEBACK_BYTES:
            start_writeback(self._descriptor, self._dirty_from, dirty)
            self._dirty_from = self._dirty_to

    def _write(self, position: int, data: memoryview) -> None:
        if self._is_shared:
            disk.write_all(self._descriptor, data, position)
            return
        if position != self._position:
            os.lseek(self._descriptor, position, os.SEEK_SET)
        disk.write_all(self._descriptor, data)

    def read(self, position: int, size: int) -> bytes:
        """Return at most ``size`` bytes at ``position``. Raises LocalFault."""
        try:
            return os.pread(self._descriptor, size, position)
        except OSError as error:
            raise local_fault(f"read {self._path}", error) from error

    def space(self) -> Space | None:
        """Return the space of the file system, None if it is unknown."""
        with self._lock:
            return freespace.space_or_none(self._descriptor)

    def reserve(self, position: int, size: int) -> bool:
        """Reserve blocks without changing the file's length.

        Return whether that was possible.
        """
        with self._lock, suppress(OSError):
            return freespace.reserve(self._descriptor, position, size, keep_size=True)
        return False

    def close(self) -> None:
        """Close the descriptor; a second call closes nothing.

        If close(2) reported a failed write, each call raises this LocalFault.
        """
        with self._lock:
            descriptor, self._descriptor = self._descriptor, _CLOSED
            if descriptor >= 0 and self._closes:
                try:
                    os.close(descriptor)
                except OSError as error:
                    self._failure = local_fault(f"write {self._path}", error)
            if self._failure is not None:
                raise self._failure
