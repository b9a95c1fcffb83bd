"""Lock files of the node: a private folder for them, ``flock`` with a time limit, and
the pid of the holder.

A lock belongs to the open file, not to the process: a process that inherits the
descriptor holds the lock as well. The kernel releases the lock when the last holder
exits. Lock files are never removed, because another process may have a file open and
wait for its lock.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from dlpool.disk import make_folders, sync_folder
from dlpool.filelock import flock

POLL_S = 0.02


def make_private_folder(folder: Path) -> None:
    """Create ``folder`` with mode 0700, and its missing parents. Do not change a folder
    that exists. Raises OSError."""
    parent = folder.absolute().parent
    make_folders(parent, sync=True)
    try:
        os.mkdir(folder, 0o700)
        sync_folder(parent)
    except FileExistsError:
        if not folder.is_dir():
            raise


def open_lock(path: Path) -> int:
    """Open or create a lock file without locking it, and return its descriptor, which
    no child inherits.

    Raises OSError.
    """
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def lock_within(descriptor: int, timeout_s: float) -> bool:
    """Lock the open file exclusively, and return whether that succeeded within
    ``timeout_s``. Raises OSError.

    On a file system without flock(2) the file stays unlocked, and the result is True:
    the lock of the state folder and the locks of part files protect the same data.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            flock(descriptor)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
        time.sleep(POLL_S)


def share_lock(descriptor: int) -> None:
    """Take a shared lock of the open file; wait while it is locked exclusively. Raises
    OSError."""
    flock(descriptor, is_shared=True, waits=True)


def write_holder(descriptor: int, pid: int) -> None:
    """Write the pid of the lock's holder into the lock file. Messages show the pid;
    nothing else needs it, so errors are ignored."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def read_holder(descriptor: int) -> str:
    """Return ``pid N`` for the lock holder that the file names, or ``pid unknown``.
    Raises OSError."""
    pid = os.pread(descriptor, 32, 0).strip()
    return f"pid {pid.decode()}" if pid.isdigit() else "pid unknown"
