"""A chunk that is being received: a temporary file, hashed while it is written.

The writer holds a lock of the file until it closes the file, so that a sweep removes
only files of processes that have exited. No other request waits for that lock.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from dlpool import disk, freespace
from dlpool.storage.digests import MD5, Digest, new_hash
from dlpool.storage.disk.assembled_file import Placement
from dlpool.storage.disk.chunk_file import TRAILER_SIZE, trailer
from dlpool.storage.disk.durability import Durability
from dlpool.storage.disk.file_locks import (
    release,
    release_on_error,
    try_lock_descriptor,
)
from dlpool.storage.disk.os_errors import translate_os_errors, upload_error_of
from dlpool.storage.disk.task_folder import SharedTaskLock
from dlpool.storage.errors import UploadError
from dlpool.storage.executables import HEAD_SIZE
from dlpool.syscalls import MIN_FALLOC_BYTES

_ACTION = "store the chunk"
_BUFFER = 256 * 1024
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class StagedChunkFile:
    """The temporary file of one chunk. Used by one thread.

    A context manager that removes the file unless it was published. ``size``, ``head``
    (the first 4 KiB) and ``digest`` describe the bytes written so far. ``is_open``: the
    file is not closed yet. ``task_lock``: the shared lock on the chunk's task, or None.
    """

    def __init__(
        self, path: Path, descriptor: int, *, max_size: int, durability: Durability
    ) -> None:
        """Take over ``descriptor``, which is open on the empty, locked file ``path``.

        ``write`` accepts at most ``max_size`` bytes in total.
        """
        self.path = path
        self.size = 0
        self.head = b""
        self.task_lock: SharedTaskLock | None = None
        self.is_open = True
        self._descriptor = descriptor
        self._max_size = max_size
        self._durability = durability
        self._algorithm, self._hash = MD5, new_hash(MD5)
        self._placement: Placement | None = None
        self._expected = self._reserved = 0

    def __repr__(self) -> str:
        return f"<StagedChunkFile {self.path}: {self.size} bytes>"

    @property
    def digest(self) -> Digest:
        """The digest of the bytes written so far, by default their MD5."""
        return Digest(self._algorithm, self._hash.digest())

    def hash_with(self, algorithm: str) -> None:
        """Compute the digest by this algorithm. Called before the first ``write``."""
        self._algorithm, self._hash = algorithm, new_hash(algorithm)

    def reserve(self, size: int) -> None:
        """Announce that the caller will write about ``size`` bytes.

        ``write`` may then reserve disk blocks for these bytes, which makes it faster.
        """
        own = 0 if self._placement else TRAILER_SIZE
        self._expected = min(size, self._max_size) + own

    def place(self, placement: Placement) -> None:
        """Let ``write`` write to the assembled file. Called before the first ``write``.

        The temporary file then gets only the trailer. ``close`` releases the placement.
        """
        self._placement = placement
        self._max_size = min(self._max_size, placement.size)

    def write(self, data: bytes) -> None:
        """Append bytes. Raises UploadError: chunk_too_large, or a fault of the disk."""
        end = self.size + len(data)
        if end > self._max_size:
            text = (
                f"a chunk may have at most {self._max_size} bytes: send smaller chunks"
            )
            raise UploadError("chunk_too_large", text, max_chunk_size=self._max_size)
        try:
            if self._reserved < end < self._expected:
                self._reserve_blocks()
            if self._placement is None:
                disk.write_all(self._descriptor, data)
            else:
                start = self._placement.start + self.size
                disk.write_all(self._placement.descriptor, data, start)
        except OSError as error:
            raise upload_error_of(_ACTION, error) from error
        self._count(data)

    def _reserve_blocks(self) -> None:
        """Reserve more blocks, about as many as are reserved already.

        Reserving in steps saves space if a client announces many bytes and sends few.
        """
        size = min(
            max(MIN_FALLOC_BYTES, self._reserved), self._expected - self._reserved
        )
        placed = self._placement
        descriptor = placed.descriptor if placed else self._descriptor
        start = self._reserved + (placed.start if placed else 0)
        if size >= MIN_FALLOC_BYTES and freespace.reserve(
            descriptor, start, size, keep_size=True
        ):
            self._reserved += size
        else:
            self._expected = 0  # do not try again

    def _count(self, data: bytes) -> None:
        if len(self.head) < HEAD_SIZE:
            self.head += bytes(data[: HEAD_SIZE - len(self.head)])
        self.size += len(data)
        self._hash.update(data)

    def load(self, size: int | None) -> None:
        """Read an existing file, and count and hash its bytes as ``write`` does.

        ``size``: first truncate the file to this number of bytes; None: do not
        truncate. Raises OSError.
        """
        if size is not None and size < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, size)
        while data := os.read(self._descriptor, _BUFFER):
            self._count(data)

    def truncate_to_size(self) -> None:
        """Truncate the file to ``size`` bytes, after a failed write. Raises OSError."""
        os.ftruncate(self._descriptor, self.size)
        os.lseek(self._descriptor, self.size, os.SEEK_SET)

    def rename(self, path: Path) -> None:
        """Give the temporary file another name. Raises OSError."""
        disk.replace(
            self.path, path, identity=disk.identity_of(os.fstat(self._descriptor))
        )
        self.path = path

    def seal(self) -> None:
        """Append the trailer and make the file durable. Raises UploadError."""
        with translate_os_errors(_ACTION):
            self._write_trailer()
            self._durability.sync_data(self._descriptor)

    def _write_trailer(self) -> None:
        """Append the trailer, and set the modification time recorded in it.

        First syncs the bytes of the chunk if they are in the assembled file. Raises
        OSError.
        """
        placed, descriptor = self._placement, self._descriptor
        if placed is not None:
            self._durability.sync_data(placed.descriptor)
        inode = os.fstat(placed.descriptor if placed else descriptor).st_ino
        now, placed_size = time.time_ns(), placed.chunk_size if placed else 0
        disk.write_all(
            descriptor, trailer(self.size, self.digest, inode, now, placed_size)
        )
        if placed is None and self._reserved > self.size + TRAILER_SIZE:
            # Frees the reserved blocks behind the trailer.
            os.ftruncate(descriptor, self.size + TRAILER_SIZE)
        with suppress(OSError):  # the merge then reads the chunk once more
            os.utime(descriptor, ns=(now, now))

    def publish(self, target: Path) -> None:
        """Rename the sealed file to ``target``, and close it.

        Replaces an existing file at ``target``. Raises OSError.
        """
        disk.replace(
            self.path, target, identity=disk.identity_of(os.fstat(self._descriptor))
        )
        self.close()

    def discard(self) -> None:
        """Remove the file; no effect after ``publish`` or ``close``.

        Errors are ignored: a sweep removes a file that remains.
        """
        if self.is_open:
            with suppress(OSError):
                os.unlink(self.path)
            self.close()

    def close(self) -> None:
        """Close the file without removing it.

        Releases the task lock and the placement.
        """
        if self.is_open:
            self.is_open = False
            release(self._descriptor)
            if self._placement is not None:
                release(self._placement.descriptor)
            if self.task_lock is not None:
                self.task_lock.release()

    def __enter__(self) -> StagedChunkFile:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.discard()


def create_staged_chunk(
    folder: Path, *, max_size: int, durability: Durability
) -> StagedChunkFile:
    """Create a temporary file in ``folder`` for a chunk. Raises OSError."""
    while True:
        path = folder / f"{secrets.token_hex(16)}.tmp"
        descriptor = os.open(path, _FLAGS, 0o666)
        with release_on_error(descriptor):
            if try_lock_descriptor(descriptor, path) and disk.exists(path):
                return StagedChunkFile(
                    path, descriptor, max_size=max_size, durability=durability
                )
        release(descriptor)  # a sweep removed the file before it was locked
