"""System calls as ``os`` does not have them. Thread-safe; the interpreter's lock is free meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os

LEAST_FALLOC = 1024 * 1024  # bytes: to reserve fewer gains nothing
_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, fallocate(2)
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)
_FULL = {errno.ENOSPC, errno.EDQUOT}


def fallocate(descriptor: int, offset: int, size: int, *, keep_size: bool = False) -> bool:
    """Reserve the blocks of ``size`` bytes; False where that is not possible. Raises OSError for a full disk or quota.

    Unlike posix_fallocate(3), never by writing them one by one. ``keep_size``: the file gets no longer.
    """
    function = getattr(_libc, "fallocate", None)
    if function is None:
        return False
    mode = _KEEP_SIZE if keep_size else 0
    if function(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _FULL:
        raise OSError(number, os.strerror(number))
    return False


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """write(2) until all is written: a signal may shorten one, or a full disk, which the next tells. Raises OSError."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def rename_to_free(folder: int, old: str, new: str) -> None:
    """Rename within the open ``folder``, unless there is a ``new``. Raises FileExistsError, OSError."""
    function = getattr(_libc, "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if function(folder, os.fsencode(old), folder, os.fsencode(new), _NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
