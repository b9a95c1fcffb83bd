"""System calls that the module ``os`` lacks, called with ctypes.

Thread-safe: the interpreter lock is released during each call.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

MIN_FALLOC_BYTES = 1024 * 1024  # a smaller reservation gains nothing
_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, fallocate(2)
_NOREPLACE = 1  # RENAME_NOREPLACE, renameat2(2)
_AT_FDCWD = -100  # openat(2)
_START_WRITING = 2  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of fcntl(2), 64 bits


def fallocate(
    descriptor: int, offset: int, size: int, *, keep_size: bool = False
) -> None:
    """Reserve the blocks of ``size`` bytes at ``offset``.

    Unlike posix_fallocate(3), it never falls back to writing zeros. ``keep_size``: do
    not extend the file. Raises OSError, with ENOSYS where libc lacks the function.
    """
    function = getattr(_libc, "fallocate", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    mode = _KEEP_SIZE if keep_size else 0
    while function(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Ask the kernel to start writing ``size`` bytes at ``offset`` to disk.

    Calls sync_file_range(2) with SYNC_FILE_RANGE_WRITE, which waits only while the
    disk's queue is full. The bytes are not durable afterwards: fdatasync(2) is still
    needed, but has less to write. It also reports write errors, so errors of this call
    are ignored.
    """
    function = getattr(_libc, "sync_file_range", None)
    if function is not None:
        function(
            descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _START_WRITING
        )


def rename_noreplace(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dir_fd: int | None = None,
) -> None:
    """Rename a file unless ``target`` exists: renameat2(2) with RENAME_NOREPLACE.

    Paths may be relative to ``dir_fd``. Raises FileExistsError if ``target`` exists,
    and OSError, with EINVAL where the file system lacks the flag and ENOSYS where libc
    lacks the function.
    """
    function = getattr(_libc, "renameat2", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    folder = _AT_FDCWD if dir_fd is None else dir_fd
    while (
        function(folder, os.fsencode(source), folder, os.fsencode(target), _NOREPLACE)
        != 0
    ):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(
                number, os.strerror(number), os.fspath(source), None, os.fspath(target)
            )


def lock_byte(descriptor: int, offset: int, *, is_shared: bool = False) -> bool:
    """Lock the byte at ``offset`` of an open file, without waiting.

    Returns False if another open file description holds a conflicting lock. ``offset``
    may be beyond the end of the file. The lock belongs to the open file description
    (F_OFD_SETLK, fcntl(2)), until the last descriptor of the description is closed.
    ``is_shared``: take a shared lock, which conflicts only with exclusive locks. Raises
    OSError.
    """
    kind = fcntl.F_RDLCK if is_shared else fcntl.F_WRLCK
    try:
        fcntl.fcntl(
            descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, offset, 1, 0)
        )
    except (BlockingIOError, PermissionError):  # fcntl(2) allows both
        return False
    return True
