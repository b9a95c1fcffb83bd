"""What the node's lock files share: a folder for nobody else, and ``flock`` with a time
limit and a pid to name.

A lock belongs to the open file, not to the process: who inherits the descriptor holds
the lock as well, and the kernel frees it when the last holder has ended, however it
ended. Lock files are never removed: a waiter may have one open.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from dlpool.disk import CANNOT_LOCK, make_folders, sync_folder
from dlpool.filelock import flock

POLL_S = 0.02


def make_private_folder(folder: Path) -> None:
    """Make ``folder`` with mode 0700 and its missing parents; one that is there stays
    as it is. Raises OSError."""
    parent = folder.absolute().parent
    make_folders(parent, sync=True)
    try:
        os.mkdir(folder, 0o700)
        sync_folder(parent)
    except FileExistsError:
        if not folder.is_dir():
            raise


def open_lock(path: Path) -> int:
    """A descriptor of the lock file at ``path``, which no child inherits; not locked
    yet. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def lock_within(descriptor: int, timeout_s: float) -> bool:
    """Lock the open file exclusively, and return whether that succeeded within
    ``timeout_s``. Raises OSError.

    Also true where the file system has no flock(2): what this keeps apart is kept apart
    by the lock of the folder, too, and workers by the locks of their part files.
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
    """Take a shared lock of the open file, and wait for an exclusive holder. Raises
    OSError."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise


def write_holder(descriptor: int, pid: int) -> None:
    """Write into the locked file who holds it; it only serves a message, so a full disk
    does not matter."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def read_holder(descriptor: int) -> str:
    """``pid N`` of who holds the lock, as far as it is written there. Raises
    OSError."""
    pid = os.pread(descriptor, 32, 0).strip()
    return f"pid {pid.decode()}" if pid.isdigit() else "pid unknown"
