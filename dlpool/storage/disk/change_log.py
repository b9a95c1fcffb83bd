"""The change log: the names of changed tasks, written by all processes of a backend.

With this log, a process can list the tasks without a scan of all folders. A process
that has held the lock of a task appends the name of the task's folder (32 bytes) before
it releases the lock. A reader remembers how far it has read. A process removes a log
that has grown too large, and the next entry creates a new log. The first 32 bytes of a
log are random, so that a reader notices a new log.

A change may be missing from the log in two cases. If a process is killed between a
change and its entry, the client has not received an answer yet. If a process cannot
write an entry, it removes the log, and readers that find no log compare all folders.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dlpool.disk import close_quietly
from dlpool.storage.disk.safe_open import READ_FLAGS

MAX_BYTES = 1 << 20
_ENTRY_SIZE = 32
_ATTEMPTS = 3
_write = os.write
_APPEND_FLAGS = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
    | os.O_CLOEXEC
)


def create_change_log(path: Path) -> None:
    """Create the log if it does not exist.

    Errors are ignored: without a log all folders are compared.
    """
    with suppress(OSError):
        _append(path, b"")


def append_change(path: Path, name: str) -> None:
    """Record that the task in the folder ``name`` may have changed. Raises nothing."""
    try:
        is_written = any(_append(path, bytes.fromhex(name)) for _ in range(_ATTEMPTS))
    except OSError:
        is_written = False
    if not is_written:
        with suppress(OSError):
            os.unlink(path)


def _append(path: Path, data: bytes) -> bool:
    """Append an entry, and return whether it is in the log.

    False if another process has removed the log meanwhile. Raises OSError.
    """
    descriptor = os.open(path, _APPEND_FLAGS, 0o666)
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            data = os.urandom(_ENTRY_SIZE) + data
        if not stat.S_ISREG(status.st_mode) or _write(descriptor, data) != len(data):
            raise OSError("the entry is incomplete")
        status = os.fstat(descriptor)
    finally:
        close_quietly(descriptor)
    if status.st_nlink == 0:
        return False
    if status.st_size >= MAX_BYTES:
        with suppress(OSError):
            os.unlink(path)
    return True


class ChangeLogReader:
    """Reads the entries of a change log. Used by one thread at a time."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """Create a reader. The log need not exist.

        ``path`` returns the path of the log, or raises OSError.
        """
        self._path = path
        self._log_id = b""
        self._offset = 0

    def read_changes(self) -> frozenset[str] | None:
        """Return the names of the folders that were recorded since the last call.

        None if the changes are unknown: the caller has to compare all folders. Raises
        nothing.
        """
        try:
            descriptor = os.open(self._path(), READ_FLAGS)
        except OSError:
            self._log_id = b""
            return None
        try:
            return self._read_open(descriptor)
        except OSError:
            self._log_id = b""
            return None
        finally:
            close_quietly(descriptor)

    def _read_open(self, descriptor: int) -> frozenset[str] | None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        log_id, earlier = os.pread(descriptor, _ENTRY_SIZE, 0), self._log_id
        if (
            len(log_id) == _ENTRY_SIZE
            and log_id == earlier
            and status.st_size >= self._offset
        ):
            return self._read_entries(descriptor)
        self._log_id = log_id if len(log_id) == _ENTRY_SIZE else b""
        self._offset = status.st_size - status.st_size % _ENTRY_SIZE
        return None

    def _read_entries(self, descriptor: int) -> frozenset[str]:
        found: set[str] = set()
        while data := os.pread(descriptor, _ENTRY_SIZE * 2048, self._offset):
            data = data[: len(data) - len(data) % _ENTRY_SIZE]
            if not data:
                break
            self._offset += len(data)
            found.update(
                data[start : start + _ENTRY_SIZE].hex()
                for start in range(0, len(data), _ENTRY_SIZE)
            )
        return frozenset(found)
