"""Exclusive locks of files between processes and hosts, by ``flock`` or a lock file.

Some file systems refuse flock(2) (ENOSYS, ENOLCK, EOPNOTSUPP), and on some cluster file
systems it succeeds without locking anything. To verify a lock, ``FileLock`` opens the
file a second time and tries to lock the second descriptor, which must fail. Where
``flock`` does not work, the lock is a file beside ``PATH``: ``PATH.lock`` (see
``lock_files``).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from dlpool import disk
from dlpool.disk_errors import CANNOT_LOCK
from dlpool.lock_files import LockFile, LockHeld

SUFFIX = ".lock"

# devices on which flock(2) is refused or has no effect; entries are only added
_no_flock: set[int] = set()


def flock(descriptor: int, *, is_shared: bool = False, waits: bool = False) -> bool:
    """Lock an open file by flock(2); return False where that is not supported.

    ``waits``: wait until the lock is free. Otherwise raises BlockingIOError if another
    open file holds the lock. Raises OSError.
    """
    try:
        fcntl.flock(
            descriptor,
            (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
            | (0 if waits else fcntl.LOCK_NB),
        )
    except OSError as error:
        if error.errno in CANNOT_LOCK:
            return False
        raise
    return True


class FileLock:
    """An exclusive lock of an open file, until ``release`` or the end of the process.

    ``was_expired``: another process had the lock and had stopped renewing it, so this
    lock replaced it. That process may still run and write to the file. Thread-safe.
    """

    def __init__(
        self, descriptor: int, path: Path, *, reopen_path: Path | None = None
    ) -> None:
        """Lock the file.

        ``descriptor``: a writable descriptor of the file that has, or will get, the
        name ``path``; the lock does not close it. ``reopen_path``: for a file without
        that name, another path that opens it. Raises LockHeld if another process holds
        the lock, LockForeign if dlpool did not create the lock file, and OSError.
        """
        self.was_expired = False
        self._lock_file: LockFile | None = None
        if _has_flock(descriptor, reopen_path or path):
            return
        self._lock_file = LockFile.acquired(path.with_name(path.name + SUFFIX))
        self.was_expired = self._lock_file.was_expired

    @property
    def uses_lock_file(self) -> bool:
        """Whether the lock is a lock file instead of ``flock``."""
        return self._lock_file is not None

    def is_held(self) -> bool:
        """Return whether this process still holds the lock; renew the lock if it does.

        Always true for ``flock``. Raises OSError.
        """
        if self._lock_file is None:
            return True
        if not self._lock_file.is_named():
            return False
        self._lock_file.renew()
        return True

    def release(self) -> None:
        """Remove the lock file, if there is one. May be called twice.

        ``flock`` is released when the descriptor is closed.
        """
        if self._lock_file is not None:
            self._lock_file.release()


def _has_flock(descriptor: int, path: Path) -> bool:
    """Lock by flock(2) and verify the lock; return False if flock(2) has no effect.

    Raises LockHeld, OSError.
    """
    status = os.fstat(descriptor)
    if status.st_dev in _no_flock:
        return False
    try:
        has_locked = flock(descriptor)
    except BlockingIOError as error:
        raise LockHeld(_flock_holder(status)) from error
    if has_locked and _excludes_second(path, disk.identity_of(status)):
        return True
    _no_flock.add(status.st_dev)
    return False


def _excludes_second(path: Path, identity: disk.Identity) -> bool:
    """Return whether the lock excludes a second descriptor of the file.

    Returns True, without a test, if the file cannot be opened again or ``path`` names
    another file by now.
    """
    try:
        second = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        if disk.identity_of(os.fstat(second)) != identity:
            # published or replaced meanwhile: the caller checks the name and retries
            return True
        flock(second)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        disk.close_quietly(second)


def _flock_holder(status: os.stat_result) -> str:
    """Return the holder of the lock, as "process 123, dlpool"; "" if unknown.

    The function reads ``/proc/locks``, see proc_locks(5).
    """
    device = (
        f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    )
    with (
        suppress(OSError, IndexError, ValueError),
        open("/proc/locks", encoding="ascii") as locks,
    ):
        for fields in (line.split() for line in locks):
            if device in fields and fields[1] == "FLOCK":
                process = int(fields[4])
                name = Path(f"/proc/{process}/comm").read_text(encoding="utf-8").strip()
                return f"process {process}, {name}"
    return ""
