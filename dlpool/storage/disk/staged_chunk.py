"""A body that is being received: a temporary file, hashed as it comes.

The file is locked by its writer for as long as it lives, so that a sweep takes only
what the dead left. That lock is on nothing that another request wants.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dlpool import disk
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, trailer
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import (
    release,
    released_on_error,
    try_lock_descriptor,
)
from dlpool.storage.disk.os_errors import translate_os_errors, upload_error_of
from dlpool.storage.disk.task_folder import SharedTaskLock
from dlpool.storage.errors import UploadError
from dlpool.storage.executables import HEAD_SIZE
from dlpool.syscalls import MIN_FALLOC_BYTES

_STORING = "store the chunk"
_BUFFER = 256 * 1024
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StagedChunk:
    """Takes the bytes of one chunk; as a context manager it discards what has not been
    stored. One thread owns it.

    ``is_open``: neither stored nor discarded yet. ``visit``: to the task that it is
    for, where that is known and there.
    """

    def __init__(
        self, path: Path, descriptor: int, *, max_size: int, sync: Durability
    ) -> None:
        """``path`` is the open, locked and empty file ``descriptor``; more than
        ``max_size`` bytes are refused."""
        self.path = path
        self.size = 0
        self.head = b""
        self.task_lock: SharedTaskLock | None = None
        self._descriptor = descriptor
        self._max_size = max_size
        self._sync = sync
        self._hash = hashlib.md5(usedforsecurity=False)
        self._expected = self._reserved = 0
        self.is_open = True

    def __repr__(self) -> str:
        return f"<Reception {self.path}: {self.size} bytes>"

    @property
    def md5(self) -> str:
        """Of what has come so far, hexadecimal."""
        return self._hash.hexdigest()

    def reserve(self, size: int) -> None:
        """About so many bytes will come: their blocks may be reserved, which makes
        writing cheaper."""
        self._expected = min(size, self._max_size) + TRAILER_SIZE

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises Refusal: 413 for more than a chunk may have, 507
        for a full disk."""
        end = self.size + len(data)
        if end > self._max_size:
            raise UploadError(
                413,
                "chunk_too_large",
                f"a chunk has at most {self._max_size} bytes: send smaller ones",
                max_chunk_size=self._max_size,
            )
        try:
            if self._reserved < end < self._expected:
                self._reserve()
            disk.write_all(self._descriptor, data)
        except OSError as error:
            raise upload_error_of(_STORING, error) from error
        self._count(data)

    def _reserve(self) -> None:
        """As many blocks again as were filled: who only promises bytes takes hardly
        more of the disk than he sent."""
        more = min(
            max(MIN_FALLOC_BYTES, self._reserved), self._expected - self._reserved
        )
        if more >= MIN_FALLOC_BYTES and disk.reserve(
            self._descriptor, self._reserved, more, keep_size=True
        ):
            self._reserved += more
        else:
            self._expected = 0  # no more of this

    def _count(self, data: bytes) -> None:
        if len(self.head) < HEAD_SIZE:
            self.head += bytes(data[: HEAD_SIZE - len(self.head)])
        self.size += len(data)
        self._hash.update(data)

    def load(self, size: int | None) -> None:
        """Take what is in the file already, of which ``size`` bytes count, or all.
        Raises OSError, Refusal."""
        if size is not None and size < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, size)
        while data := os.read(self._descriptor, _BUFFER):
            self._count(data)

    def truncate_to_size(self) -> None:
        """Drop what a failed write left behind the bytes that count. Raises OSError."""
        os.ftruncate(self._descriptor, self.size)
        os.lseek(self._descriptor, self.size, os.SEEK_SET)

    def rename(self, path: Path) -> None:
        """Give the temporary file another name. Raises OSError."""
        disk.replace(
            self.path, path, identity=disk.identity_of(os.fstat(self._descriptor))
        )
        self.path = path

    def seal(self) -> None:
        """Write size and md5 behind the bytes and wait until all is on the disk. Raises
        Refusal."""
        with translate_os_errors(_STORING):
            disk.write_all(self._descriptor, trailer(self.size, self._hash.digest()))
            if self._reserved > self.size + TRAILER_SIZE:
                os.ftruncate(
                    self._descriptor, self.size + TRAILER_SIZE
                )  # ftruncate(2) frees what is behind it
            self._sync.sync_data(self._descriptor)

    def publish(self, target: Path) -> None:
        """Give the sealed file its name, in place of an earlier one, and end. Raises
        OSError."""
        disk.replace(
            self.path, target, identity=disk.identity_of(os.fstat(self._descriptor))
        )
        self._close()

    def discard(self) -> None:
        """Remove what has come; nothing happens after ``move``."""
        if self.is_open:
            with suppress(OSError):
                os.unlink(self.path)
            self._close()

    def close(self) -> None:
        """End, and let what has come lie where it is."""
        self._close()

    def __enter__(self) -> StagedChunk:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            release(self._descriptor)
            if self.task_lock is not None:
                self.task_lock.release()


def create_staged_chunk(
    folder: Path, *, max_size: int, sync: Durability
) -> StagedChunk:
    """A reception in ``folder``. Raises OSError."""
    while True:
        path = folder / f"{secrets.token_hex(16)}.tmp"
        descriptor = os.open(path, _FLAGS, 0o666)
        with released_on_error(descriptor):
            if try_lock_descriptor(descriptor, path) and disk.exists(path):
                return StagedChunk(path, descriptor, max_size=max_size, sync=sync)
        release(descriptor)  # a sweep came between open and lock
