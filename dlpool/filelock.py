"""Exclusive locks of files between processes and hosts, by ``flock`` or a lock file.

Some file systems refuse flock(2) (ENOSYS, ENOLCK, EOPNOTSUPP). On some cluster file
systems flock(2) succeeds without locking anything. Each process therefore tests flock
once per file system: ``FileLock`` opens the locked file a second time and tries to lock
the second descriptor. This attempt must fail. Where flock does not work, the lock is a
file beside ``PATH``: ``PATH.lock`` (see ``lock_files``).
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

# By device: whether flock(2) excludes other descriptors; missing until it is verified.
_flock_works: dict[int, bool] = {}


def flock(descriptor: int, *, is_shared: bool = False, waits: bool = False) -> bool:
    """Lock an open file by flock(2); return False if its file system cannot lock.

    ``waits``: wait until the lock is free. Without ``waits``, raises BlockingIOError if
    the lock is not free. Raises OSError for other errors.
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
    """An exclusive lock of an open file. Thread-safe.

    ``was_expired``: this lock replaced the lock of another process, which had stopped
    renewing its lock. That process may still run and write to the file.
    """

    def __init__(
        self,
        descriptor: int,
        path: disk.Name,
        *,
        status: os.stat_result | None = None,
        reopen_path: str | None = None,
    ) -> None:
        """Lock the file.

        ``descriptor``: a writable descriptor of the file that has, or will get, the
        name ``path``; the lock does not close it. ``status``: the stat result of the
        file, None if the caller has none. ``reopen_path``: for a file that does not
        have its name yet, another path that opens it. Raises LockHeld if the file is
        locked already, LockForeign if dlpool did not create the lock file, and OSError.
        """
        self.was_expired = False
        self._lock_file: LockFile | None = None
        status = status or os.fstat(descriptor)
        if _has_flock(descriptor, status, reopen_path or path):
            return
        self._lock_file = LockFile.acquired(Path(f"{os.fspath(path)}{SUFFIX}"))
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
        """Remove the lock file, if there is one. A second call has no effect.

        Without a lock file, the lock ends when the caller closes the descriptor.
        """
        if self._lock_file is not None:
            self._lock_file.release()


def _has_flock(descriptor: int, status: os.stat_result, path: disk.Name) -> bool:
    """Lock the file by flock(2); return False if flock does not work there.

    Raises LockHeld, OSError.
    """
    is_known = _flock_works.get(status.st_dev)
    if is_known is False:
        return False
    try:
        has_locked = flock(descriptor)
    except BlockingIOError as error:
        raise LockHeld(_flock_holder(status)) from error
    if has_locked and is_known:
        return True
    works = has_locked and _excludes_second(path, disk.identity_of(status))
    if works is not None:
        _flock_works[status.st_dev] = works
    return works is not False


def _excludes_second(path: disk.Name, identity: disk.Identity) -> bool | None:
    """Return whether the lock excludes a second descriptor of the file.

    Returns None if this cannot be tested, because ``path`` cannot be opened or names
    another file.
    """
    try:
        second = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if disk.identity_of(os.fstat(second)) != identity:
            # published or replaced meanwhile: the caller checks the name and retries
            return None
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
