"""The live log file. Each process appends records to it, and opens a new file when the
open file has been renamed.

Each writer holds the flock LOCK_SH on its file. Another process compresses or removes a
renamed file only with LOCK_EX, and therefore only after every writer has closed it. A
writer takes its lock before it checks that the file still has its name.
"""

from __future__ import annotations

import errno
import os
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlpool.filelock import flock

_CHECK_S = 0.2  # between checks whether the open file still has its name
_MAX_ATTEMPTS = 10  # to open the file while other processes rename it
_MODE = 0o640


class LogFile:
    """A log file that is open for appending. Methods raise OSError. Threads, signal
    handlers and forked processes may use it.

    No thread lock is needed: dup2 puts the new file under the same descriptor number. A
    write in progress continues on the old file and keeps its LOCK_SH.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_required: bool = True,
    ) -> None:
        """Open the file. With ``is_required``, raise OSError if that fails. Without
        ``is_required``, ``append`` raises OSError until the file can be opened."""
        self.path = path
        self.is_closed = False
        self._clock = clock
        self._next_check = clock() + _CHECK_S
        self._descriptor = (
            _open_live(path) if is_required else _open_live_or_nothing(path)
        )
        self._clean_end = self._torn_end = -1  # sizes of the file whose end was checked
        # The number must not be reused, for a download for instance, while a thread can
        # still write to it.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def append(self, line: bytes) -> None:
        """Write one record, newline included, in one call. If the write fails, a part
        of the record may be in the file."""
        if self.is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._clock() >= self._next_check:
            with suppress(OSError):  # write to the old file then
                self.follow()
        size = os.fstat(self._descriptor).st_size
        if size != self._clean_end and self._ends_torn(size):
            line = b"\n" + line
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        # if another process wrote meanwhile, no later size is equal
        self._clean_end = size + len(line)

    def follow(self) -> None:
        """Open the file that now has the log's name, if the log has been rotated."""
        self._next_check = self._clock() + _CHECK_S
        if not self.is_closed and not _is_named(self._descriptor, self.path):
            self._replace_by(_open_live(self.path))

    def close(self) -> None:
        """Close the file. Later records raise OSError."""
        self.is_closed = True
        self._replace_by(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _replace_by(self, other: int) -> None:
        os.dup2(other, self._descriptor, inheritable=False)
        os.close(other)
        self._clean_end = self._torn_end = -1

    def _ends_torn(self, size: int) -> bool:
        """Return whether the file ends in an incomplete record: a full disk or SIGKILL
        has cut a write.

        A write that another process has not finished looks the same. This method first
        waits for the end of such a write.
        """
        if size == self._torn_end:
            return True
        if size == 0 or os.pread(self._descriptor, 1, size - 1) in (b"\n", b""):
            return False
        # Even if this fails, it waits for the kernel's lock of the inode, which a write
        # holds.
        with suppress(OSError):
            os.utime(self._descriptor)
        if os.fstat(self._descriptor).st_size != size:
            return False
        self._torn_end = size
        return True


def _open_live(path: Path) -> int:
    """Open or create the file at ``path``, lock it with LOCK_SH, and return its
    descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_MAX_ATTEMPTS):
        descriptor = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE
        )
        try:
            # without flock, only old enough files are compressed
            flock(descriptor, is_shared=True)
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError:
            pass  # renamed after the open, and being compressed
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "another program has locked it")


def _open_live_or_nothing(path: Path) -> int:
    try:
        return _open_live(path)
    except OSError:
        # writes fail until ``follow`` succeeds
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
