"""Notes of which tasks have changed, from all processes of a store: so that nobody has
to look at all folders for it.

The journal is a file to which each section under a task's lock appends the name of the
task's folder, 32 bytes, before the lock is released. A reader remembers how far it has
read. A journal that grows too large is removed, and made again by the next note; its
first 32 bytes are random, so that readers do not take one for another. Nothing depends
on the journal being complete: a process that is killed between a change and its note
has not answered its client yet, and a note that cannot be written removes the journal,
without which all folders are compared.
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
_SIZE = 32  # of a note
_TRIES = 3
_write = os.write
_APPEND = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | os.O_NOFOLLOW
    | os.O_NONBLOCK
    | os.O_CLOEXEC
)


def create_change_log(path: Path) -> None:
    """Make the journal if it does not exist. Raises nothing: without one all folders
    are compared."""
    with suppress(OSError):
        _append(path, b"")


def append_change(path: Path, name: str) -> None:
    """Note that the task in the folder ``name`` may have changed. Raises nothing."""
    try:
        is_noted = any(_append(path, bytes.fromhex(name)) for _ in range(_TRIES))
    except OSError:
        is_noted = False
    if not is_noted:
        with suppress(OSError):
            os.unlink(path)


def _append(path: Path, data: bytes) -> bool:
    """Append a note; return False if it may not be found, as the journal was removed.
    Raises OSError."""
    descriptor = os.open(path, _APPEND, 0o666)
    try:
        status = os.fstat(descriptor)
        if status.st_size == 0:
            data = os.urandom(_SIZE) + data
        if not stat.S_ISREG(status.st_mode) or _write(descriptor, data) != len(data):
            raise OSError("the note is incomplete")
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
    """Reads the notes of a journal. For one thread at a time."""

    def __init__(self, path: Callable[[], Path]) -> None:
        """``path`` returns where the journal is, which may not exist, or raises
        OSError."""
        self._path = path
        self._identity = b""
        self._offset = 0

    def read_changes(self) -> frozenset[str] | None:
        """Return the folders that were noted since the last call; None if they are not
        known: compare all folders.

        Raises nothing.
        """
        try:
            descriptor = os.open(self._path(), READ_FLAGS)
        except OSError:
            self._identity = b""
            return None
        try:
            return self._names(descriptor)
        except OSError:
            self._identity = b""
            return None
        finally:
            close_quietly(descriptor)

    def _names(self, descriptor: int) -> frozenset[str] | None:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        identity, earlier = os.pread(descriptor, _SIZE, 0), self._identity
        if (
            len(identity) == _SIZE
            and identity == earlier
            and status.st_size >= self._offset
        ):
            return self._read(descriptor)
        self._identity = identity if len(identity) == _SIZE else b""
        self._offset = status.st_size - status.st_size % _SIZE
        return None

    def _read(self, descriptor: int) -> frozenset[str]:
        found: set[str] = set()
        while data := os.pread(descriptor, _SIZE * 2048, self._offset):
            data = data[: len(data) - len(data) % _SIZE]
            if not data:
                break
            self._offset += len(data)
            found.update(
                data[begin : begin + _SIZE].hex()
                for begin in range(0, len(data), _SIZE)
            )
        return frozenset(found)
