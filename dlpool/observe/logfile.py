"""The live log file of a process: appends records, and follows its name when another
process renames the file.

Each writer holds LOCK_SH on the file that it writes to. Who renames it may compress or
remove it only under LOCK_EX, that is, when every writer has left; a writer holds its
lock before it believes that the file still has the name.
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

_LOOK_S = 0.2
_ATTEMPTS = 10
_MODE = 0o640


class LogFile:
    """A log file that is open for appending. Methods raise OSError.

    It has no lock, so threads, signal handlers and forked children may use it freely:
    the number of its descriptor stays, another file is put under it by dup2, and a
    write under way keeps the file that it began on, and its lock.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_required: bool = True,
    ) -> None:
        """Raises OSError if it cannot be opened; not ``is_required``: it refuses
        records until it can be."""
        self.path = path
        self.is_closed = False
        self._clock = clock
        self._next_look = clock() + _LOOK_S
        self._descriptor = (
            _open_live(path) if is_required else _open_live_or_nothing(path)
        )
        self._whole_at = (
            self._torn_at
        ) = -1  # sizes of the file at which its end is known
        # Only when nobody can write any more is the number free for another file, which
        # might be a download.
        weakref.finalize(self, os.close, self._descriptor).atexit = False

    def append(self, line: bytes) -> None:
        """Write one record, newline included, at once. When it fails the record may be
        there in part."""
        if self.is_closed:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._clock() >= self._next_look:
            with suppress(OSError):  # the old file takes the record still
                self.follow()
        size = os.fstat(self._descriptor).st_size
        if size != self._whole_at and self._ends_torn(size):
            line = b"\n" + line
        if os.write(self._descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._whole_at = size + len(
            line
        )  # true only if nobody wrote meanwhile; else no later size is equal

    def follow(self) -> None:
        """Leave a file that has lost its name for the one that has it now."""
        self._next_look = self._clock() + _LOOK_S
        if not self.is_closed and not _is_named(self._descriptor, self.path):
            self._change_to(_open_live(self.path))

    def close(self) -> None:
        """Leave the file; later records are refused."""
        self.is_closed = True
        self._change_to(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def _change_to(self, other: int) -> None:
        os.dup2(other, self._descriptor, inheritable=False)
        os.close(other)
        self._whole_at = self._torn_at = -1

    def _ends_torn(self, size: int) -> bool:
        """Whether the file ends in part of a record: a full disk or SIGKILL cuts a
        write at a page of the file.

        Another process's write under way may look the same, for as long as the
        scheduler likes; so let it end first.
        """
        if size == self._torn_at:
            return True
        if size == 0 or os.pread(self._descriptor, 1, size - 1) in (b"\n", b""):
            return False
        with suppress(
            OSError
            # even a refusal comes only when the kernel's lock of the inode, a write's,
            # is free
        ):
            os.utime(self._descriptor)
        if os.fstat(self._descriptor).st_size != size:
            return False
        self._torn_at = size
        return True


def _open_live(path: Path) -> int:
    """A descriptor of the file that has the name ``path``, made if need be, with
    LOCK_SH held on it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        descriptor = os.open(
            path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE
        )
        try:
            flock(
                descriptor, is_shared=True
            )  # without flock, a file is compressed only when it is old enough
            if _is_named(descriptor, path):
                return descriptor
        except BlockingIOError:
            pass  # renamed since the open, and being compressed already
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OSError(errno.EAGAIN, "another program has locked it")


def _open_live_or_nothing(path: Path) -> int:
    try:
        return _open_live(path)
    except OSError:
        return os.open(
            os.devnull, os.O_RDONLY | os.O_CLOEXEC
        )  # each write fails, and each look tries again


def _is_named(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
